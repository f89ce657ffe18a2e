"""All orders in which the FP8 attention kernel's copies and reads may happen, in a model of it.

    python -m scripts.attention_protocol [--warps 1] [--stages 2] [--tiles 5]

In `kernels/fp8_attention.cu` two thread blocks share tiles of keys and values in a ring of stages.
Each block's producer copies half of a tile to both, once every warp of both has given the stage
back (`empty`); a stage is `full` once both halves are there. In turn i a warp waits for tile i + 1,
reads it and tile i, and gives back i's stage at both blocks, in any order. Copies land at any time.
The search ends with an error at a copy into what a warp has still to read, a read of another tile
than the one meant, or an end where something waits for ever. It takes waits and arrivals as PTX has
them for whole warps, and so says nothing of the order of lanes within one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

T = TypeVar("T")
BLOCKS = 2
Barrier = tuple[int, int, int]  # phase, arrivals that it waits for, halves that it waits for


class State(NamedTuple):
    producers: tuple[tuple[int, int], ...]  # of each block: tile, step
    warps: tuple[tuple[int, int], ...]  # of all blocks: turn, step
    full: tuple[Barrier, ...]  # of every stage of all blocks
    empty: tuple[Barrier, ...]
    lies: tuple[tuple[int, ...], ...]  # there: the tile whose half each is
    flying: frozenset[tuple[int, int, int]]  # copies: from block, to block, tile


class Wrong(Exception):
    """What cannot be in a right protocol."""


@dataclass(frozen=True)
class Protocol:
    """Its sizes. The last two plant a fault."""

    warps: int  # of each block
    stages: int
    tiles: int
    arrivals: int = 0  # that `empty` waits for, if not one of every warp of both blocks
    hasty: bool = False  # warps give a stage back before they have read it

    def searched(self) -> int:
        """The number of states that there are. Raises Wrong."""
        count = BLOCKS * self.stages
        begun = State(
            ((0, 0),) * BLOCKS,
            ((-1, 0),) * (BLOCKS * self.warps),
            ((0, 1, 0),) * count,
            ((0, self._arrivals, 0),) * count,
            ((-1,) * BLOCKS,) * count,
            frozenset(),
        )
        seen, left = {begun}, [begun]
        while left:
            state = left.pop()
            following = list(self._following(state))
            ended = all(tile == self.tiles for tile, _ in (*state.producers, *state.warps))
            if not following and not ended:
                raise Wrong(f"waits for ever: {state}")
            new = set(following) - seen
            seen |= new
            left += new
        return len(seen)

    @property
    def _arrivals(self) -> int:
        return self.arrivals or BLOCKS * self.warps

    def _following(self, state: State) -> Iterator[State]:
        for block in range(BLOCKS):
            yield from self._produced(state, block)
        for copy in state.flying:
            yield self._landed(state, copy)
        for warp in range(BLOCKS * self.warps):
            yield from self._consumed(state, warp)

    def _produced(self, state: State, block: int) -> Iterator[State]:
        tile, step = state.producers[block]
        if tile == self.tiles:
            return
        at, turn = block * self.stages + tile % self.stages, tile // self.stages
        if step == 0 and turn and state.empty[at][0] == (turn - 1) % 2:
            return  # it waits
        if step == 0:
            yield state._replace(producers=_put(state.producers, block, (tile, 1)))
        elif step == 1:
            phase, _, halves = state.full[at]
            expecting = _settled((phase, 0, halves + BLOCKS), 1)
            yield state._replace(
                producers=_put(state.producers, block, (tile, 2)),
                full=_put(state.full, at, expecting),
            )
        else:
            for to in range(BLOCKS):
                self._free(state, to, tile)
            yield state._replace(
                producers=_put(state.producers, block, (tile + 1, 0)),
                flying=state.flying | {(block, to, tile) for to in range(BLOCKS)},
            )

    def _landed(self, state: State, copy: tuple[int, int, int]) -> State:
        block, to, tile = copy
        at = to * self.stages + tile % self.stages
        self._free(state, to, tile)
        phase, waits, halves = state.full[at]
        return state._replace(
            full=_put(state.full, at, _settled((phase, waits, halves - 1), 1)),
            lies=_put(state.lies, at, _put(state.lies[at], block, tile)),
            flying=state.flying - {copy},
        )

    def _free(self, state: State, block: int, tile: int) -> None:
        """Raise Wrong where a warp of the block has still to read what the tile would replace."""
        old = tile - self.stages
        for turn, step in state.warps[block * self.warps : (block + 1) * self.warps]:
            if old >= 0 and (turn < old or (turn == old and step < 2 + 3 * self.hasty)):
                raise Wrong(f"tile {tile} over {old}, which is still read: {state}")

    def _consumed(self, state: State, warp: int) -> Iterator[State]:
        """Steps: 0 waits, 1 reads, 2 has read, 3 and 4 have told one block that, 5 both (hasty)."""
        block, (turn, step) = warp // self.warps, state.warps[warp]
        if turn == self.tiles:
            return
        after = min(turn + 1, self.tiles - 1)
        at = block * self.stages + after % self.stages
        if step == 0:
            if state.full[at][0] != after // self.stages % 2:
                first = 2 if self.hasty and turn >= 0 else 1
                yield state._replace(warps=_put(state.warps, warp, (turn, first)))
        elif step in (1, 5):
            here = block * self.stages + max(turn, 0) % self.stages
            if set(state.lies[at]) != {after} or set(state.lies[here]) != {max(turn, 0)}:
                raise Wrong(f"turn {turn} reads another tile: {state}")
            done = (turn, 2) if step == 1 and turn >= 0 else (turn + 1, 0)
            yield state._replace(warps=_put(state.warps, warp, done))
        else:
            for to in {0, 1} - {step - 3}:
                there = to * self.stages + turn % self.stages
                phase, waits, _ = state.empty[there]
                told = (turn, 3 + to) if step == 2 else (turn, 5) if self.hasty else (turn + 1, 0)
                yield state._replace(
                    warps=_put(state.warps, warp, told),
                    empty=_put(state.empty, there, _settled((phase, waits - 1, 0), self._arrivals)),
                )


def _settled(barrier: Barrier, arrivals: int) -> Barrier:
    phase, waits, halves = barrier
    return barrier if waits or halves else (phase ^ 1, arrivals, 0)


def _put(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("warps", 1), ("stages", 2), ("tiles", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    states = Protocol(args.warps, args.stages, args.tiles).searched()
    print(f"{states} states, every copy is into what all have read")


if __name__ == "__main__":
    main()
