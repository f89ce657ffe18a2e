"""The processes that make one video together: who they are, and how they exchange tensors.

A process is a rank, on a GPU of its own. Ranks form a grid of guidance x ring x Ulysses, and every
collective of the denoiser and the decode goes through a `Group` here, so that all are counted and
the time in them is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from qbench.errors import Unsupported
from qbench.recipe.schema import Parallel

BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}
NOT_STARTED = (
    "variant.parallel: its {} ranks are processes that 'qbench run' starts; in a script of your "
    "own start one a GPU with torchrun and call torch.distributed.init_process_group in each"
)


_Moment = float | torch.cuda.Event  # on a CPU, on a GPU


@dataclass
class Exchanged:
    """What a CUDA graph exchanges each time that it is replayed."""

    begun: int = 0
    spans: list[tuple[_Moment, _Moment]] = field(default_factory=list)


@dataclass
class Traffic:
    """What a rank has exchanged.

    begun: collectives so far. All ranks begin the same ones in the same order, so the rank that
    has begun the fewest is the one that the others wait for.
    """

    begun: int = 0
    _spans: list[tuple[_Moment, _Moment]] = field(default_factory=list)

    @contextmanager
    def exchange(self, on: torch.device) -> Iterator[None]:
        """Count what happens inside, and time it: what was sent, and the wait for the others."""
        self.begun += 1
        start = _now(on)
        yield
        self._spans.append((start, _now(on)))

    @contextmanager
    def captured(self) -> Iterator[Exchanged]:
        """What is begun inside is captured in a CUDA graph, and happens when that is replayed."""
        begun, spans = self.begun, self._spans
        self._spans, found = [], Exchanged()
        try:
            yield found
        finally:
            found.begun, found.spans = self.begun - begun, self._spans
            self.begun, self._spans = begun, spans

    def again(self, captured: Exchanged) -> None:
        """A graph was replayed. Its exchanges' times are those of its last replay."""
        self.begun += captured.begun
        self._spans += captured.spans

    def seconds(self) -> float:
        """Spent in exchanges since the last call; the device must have finished them."""
        spans, self._spans = self._spans, []
        return sum(_between(start, end) for start, end in spans)


def _now(on: torch.device) -> _Moment:
    if on.type != "cuda":
        return time.perf_counter()
    captured = torch.cuda.is_current_stream_capturing()  # then it has a time at every replay
    event = torch.cuda.Event(enable_timing=True, external=captured)
    event.record()
    return event


def _between(start: _Moment, end: _Moment) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert not isinstance(start, float)
    assert not isinstance(end, float)
    return start.elapsed_time(end) / 1000


class Group:
    """Some of the ranks, in order. Tensors travel as bytes: not every backend knows every dtype."""

    def __init__(self, group: dist.ProcessGroup, traffic: Traffic) -> None:
        self.group, self._traffic = group, traffic
        self.members = dist.get_process_group_ranks(group)
        self.index = dist.get_rank(group)

    @property
    def size(self) -> int:
        return len(self.members)

    def gather(self, x: Tensor) -> list[Tensor]:
        """Everybody's `x`, all of one shape, in the group's order."""
        sent = x.contiguous()
        all_of = [torch.empty_like(sent) for _ in self.members]
        with self._traffic.exchange(x.device):
            dist.all_gather([_bytes(one) for one in all_of], _bytes(sent), group=self.group)
        return all_of

    def gather_uneven(self, x: Tensor, sizes: Sequence[int], dim: int) -> list[Tensor]:
        """Everybody's `x`, which are of these sizes along `dim` and else of one shape."""
        short = max(sizes) - x.shape[dim]
        if short:
            rest = list(x.shape)
            rest[dim] = short
            x = torch.cat([x, x.new_zeros(rest)], dim)
        found = self.gather(x)
        return [one.narrow(dim, 0, size) for one, size in zip(found, sizes, strict=True)]

    def fill(self, x: Tensor, source: int) -> None:
        """Overwrite the contiguous `x` with that of the member `source`."""
        with self._traffic.exchange(x.device):
            dist.broadcast(_bytes(x), self.members[source], group=self.group)

    def total(self, x: Tensor) -> Tensor:
        """The sum of everybody's `x`, in FP32."""
        x = x.float().contiguous()
        with self._traffic.exchange(x.device):
            dist.all_reduce(x, group=self.group)
        return x

    def trade(
        self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]
    ) -> None:
        """Send to and receive from members, all at once.

        Tensors are contiguous. What one member sends to another arrives in the order given.
        """
        self.begin(sends, receives)()

    def begin(
        self, sends: Sequence[tuple[int, Tensor]], receives: Sequence[tuple[int, Tensor]]
    ) -> Callable[[], None]:
        """Begin a trade and return what waits for its end; until then nothing touches the tensors.

        All ranks must begin theirs in the same order.
        """
        operations = []
        for direction, pairs in ((dist.isend, sends), (dist.irecv, receives)):
            counts: dict[int, int] = {}
            for member, x in pairs:
                counts[member] = tag = counts.get(member, 0) + 1
                peer = self.members[member]
                operations.append(dist.P2POp(direction, _bytes(x), peer, self.group, tag))
        if not operations:
            return lambda: None
        under_way = dist.batch_isend_irecv(operations)
        kept = (*sends, *receives)  # their memory is not to be given to others meanwhile

        def finish() -> None:
            with self._traffic.exchange(kept[0][1].device):
                for work in under_way:
                    work.wait()

        return finish


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dim() else x.reshape(1).view(torch.uint8)


class Ranks:
    """The grid of ranks, seen from one of them."""

    def __init__(self, wanted: Parallel, device: str) -> None:
        """Every rank must call this, at the same point.

        Raises Unsupported unless as many processes as the recipe wants have joined.
        """
        from torch.distributed.device_mesh import init_device_mesh

        if not dist.is_initialized() or dist.get_world_size() != wanted.ranks:
            raise Unsupported(NOT_STARTED.format(wanted.ranks))
        self.traffic, self.wanted = Traffic(), wanted
        shape = (wanted.cfg, wanted.ring, wanted.ulysses)
        self.mesh = init_device_mesh(device, shape, mesh_dim_names=("cfg", "ring", "ulysses"))
        self.over_tokens = self.mesh["ring", "ulysses"]._flatten("tokens")

        def group(name: str) -> Group:
            return Group(self.mesh.get_group(name), self.traffic)

        self.cfg, self.ring, self.ulysses = group("cfg"), group("ring"), group("ulysses")
        self.tokens = Group(self.over_tokens.get_group(), self.traffic)
        world = dist.group.WORLD
        assert world is not None
        self.everyone = Group(world, self.traffic)
        self._leaving: list[Callable[[], object]] = []

    def on_leaving(self, step: Callable[[], object]) -> None:
        """Have `step` let go of what uses the groups before they are."""
        self._leaving.append(step)

    def leave(self) -> None:
        """End the groups, on every rank: no call of the denoiser comes after."""
        while self._leaving:
            self._leaving.pop()()
        if dist.is_initialized():
            dist.destroy_process_group()

    def check_alike(self, module: torch.nn.Module) -> None:
        """Raise RuntimeError where ranks hold other weights: their videos would be nobody's."""
        sums = [_digest(x) for x in [*module.parameters(), *module.buffers()]]
        if not sums:
            return
        whole = torch.stack(sums)
        for rank, theirs in enumerate(self.everyone.gather(whole)):
            if not torch.equal(theirs, whole):
                raise RuntimeError(
                    f"variant.parallel: ranks {self.everyone.index} and {rank} hold different "
                    "weights: quantize on one GPU, export, and run the exported folder"
                )


def _digest(x: Tensor) -> Tensor:
    """A sum over the raw values of a tensor, or over those that a quantized one is made of."""
    inner = getattr(x, "__tensor_flatten__", None)
    if inner is not None:
        names, _ = inner()
        return torch.stack([_digest(getattr(x, name)) for name in names]).sum()
    raw = x.detach().contiguous().reshape(-1).view(torch.uint8)
    return raw.sum(dtype=torch.int64)
