"""Attention over tokens that lie on several ranks: Ulysses, ring, and both together.

Outside of attention a transformer works on each token by itself, so each rank has a share of them.
Ulysses (Jacobs 2023): around attention the ranks trade their shares of all heads for all tokens of
a share of the heads. Ring (Liu 2023): keys and values go round, and what a rank's queries find in
each part is merged by the parts' log-sum-exp. Together, ranks form rows of Ulysses, between which
keys and values go round.

Text and video may each be split over all ranks, evenly or not. Ulysses brings them into the order
that they have on one GPU, the text first. Attention without a mask does not depend on it, but how
kernels round depends on what lies in each of their tiles; those in eight bits make another video.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.library import custom_op

from qbench.errors import Unsupported
from qbench.optimizations.changes import Changes, Forward

if TYPE_CHECKING:
    from qbench.optimizations.parallel.groups import Ranks
    from qbench.optimizations.parallel.partials import Partial
    from qbench.pipelines.attention import Kernel
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.recipe.schema import Parallel

    Range = slice[int, int, None]
    Places = list[tuple[Range, Range]]  # of a rank's own tokens, and among those of all
    Piece = tuple[Range, Range]  # of videos, and of the heads of each rank

Shapes = tuple[tuple[int, ...], ...]
PIECES = 2


def check(video: VideoPipeline, wanted: Parallel) -> None:
    """Raise Unsupported where the family has no plan, or heads do not divide, with what does."""
    if video.context_plan() is None:
        raise Unsupported(
            f"variant.parallel: the tokens of a {type(video.denoiser).__name__} cannot be split: "
            "diffusers has no plan for it, nor has qbench; 'cfg: 2' splits guidance"
        )
    check_heads(video.heads(), wanted.ulysses)


def apply(video: VideoPipeline, attention: Attention, changes: Changes) -> None:
    """Split the denoiser's tokens by the family's plan, and have `attention` hear of its calls.

    The plan is in diffusers' own form, and so are the hooks that follow it.
    """
    from diffusers.hooks import context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig

    module, plan, ranks = video.denoiser, video.context_plan(), attention.ranks
    assert plan is not None
    config = ContextParallelConfig(ulysses_degree=ranks.tokens.size, ulysses_anything=True)
    config._flattened_mesh = ranks.over_tokens  # all that the hooks read of it
    inputs = {name: wanted for name, wanted in plan.items() if isinstance(wanted, dict)}
    context_parallel.apply_context_parallel(module, config, inputs)
    changes.on_undo(lambda: context_parallel.remove_context_parallel(module, inputs))
    for name in plan.keys() - inputs.keys():
        # Not by diffusers' hook: it asks for sizes at every step, and gloo takes no uneven ones.
        dim = plan[name].gather_dim  # type: ignore[attr-defined]
        part = module.get_submodule(name)
        changes.replace(part, "forward", _Gathered(part.forward, attention, name, dim))
    inner, leading = module.forward, video.leading_text()
    names = list(inspect.signature(type(module).forward).parameters)[1:]

    def forward(_: Module, *args: object, **kwargs: object) -> object:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        given = dict(zip(names, args, strict=False)) | kwargs
        text = given[leading].shape[1] if leading else 0  # type: ignore[attr-defined]
        if 0 < text < ranks.tokens.size:
            raise Unsupported(
                f"variant.parallel: {text} tokens of text cannot be split over {ranks.tokens.size} "
                "GPUs, each of which needs one"
            )
        attention.begin(tuple(tuple(x.shape) for x in tensors), text)
        return inner(*args, **kwargs)

    changes.compute(module, forward)
    changes.on_undo(attention.release)


def check_heads(heads: int, wanted: int) -> None:
    """Raise Unsupported, naming the nearest that do, where heads do not divide by `wanted`."""
    if heads % wanted == 0:
        return
    fitting = [n for n in range(2, heads + 1) if heads % n == 0]
    below = [n for n in fitting if n < wanted]
    near = below[-1:] + fitting[len(below) :][:1]
    raise Unsupported(
        f"variant.parallel.ulysses: {heads} heads do not divide by {wanted}; the nearest that do: "
        f"{', '.join(map(str, near)) or 'none'}; 'ring' takes any"
    )


class Attention:
    """Self-attention over the tokens of all ranks, whichever kernel computes it on each."""

    def __init__(self, ranks: Ranks, pieces: int = PIECES) -> None:
        """pieces: while one is attended to, the next is on its way, and the one before back."""
        self.ranks, self._wanted = ranks, pieces
        self._known: dict[tuple[str, Shapes], list[int]] = {}
        self._shapes: Shapes = ()
        self._text = 0
        self._held: dict[str, Tensor] = {}
        self._in_graphs: dict[int, Tensor] = {}  # that captured graphs work in, by their addresses

    def begin(self, shapes: Shapes, text: int = 0) -> None:
        """A call of the denoiser begins, on inputs of these shapes: the same on every rank.

        text: how many tokens stand before the video's in attention, split over all ranks too.
        """
        self._shapes, self._text = shapes, text

    def around(self, kernel: Kernel, partial: Partial | None) -> Kernel:
        """`kernel` over the tokens of all ranks. `partial` is the same with what ring needs."""
        number = len(_LIVE)
        _LIVE.append(Live(self, kernel, partial))
        return lambda q, k, v: _operator(q, k, v, number)

    def compute(self, q: Tensor, k: Tensor, v: Tensor, live: Live) -> Tensor:
        """Of this rank's share of the tokens, (batch, tokens, heads, channels) in and out."""
        lengths = self.sizes("attention", q.shape[1], q.device)
        across, ring = self.ranks.ulysses, self.ranks.ring
        rows = [lengths[i : i + across.size] for i in range(0, len(lengths), across.size)]
        texts = _shares(self._text, len(lengths))
        row = slice(across.size * ring.index, across.size * (ring.index + 1))
        places = _places(tuple(texts[row]), tuple(lengths[row]))

        def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if ring.size == 1:
                return live.kernel(q, k, v)
            assert live.partial is not None
            return self._round(q, k, v, [sum(row) for row in rows], live.partial)

        if across.size == 1:
            return attended(q, k, v)
        split = [x.unflatten(2, (across.size, -1)) for x in (q, k, v)]
        made = q.new_empty(q.shape)
        heads = made.unflatten(2, (across.size, -1))
        pieces = _pieces(q.shape[0], split[0].shape[3], self._wanted)
        coming = [
            self._heads_for_tokens([_cut(x, one) for x in split], places, number)
            for number, one in enumerate(pieces)
        ]
        going = [
            self._tokens_for_heads(attended(*arrived()), places, _cut(heads, one), number)
            for number, (one, arrived) in enumerate(zip(pieces, coming, strict=True))
        ]
        for put in going:
            put()
        return made

    def sizes(self, name: str, own: int, device: torch.device) -> list[int]:
        """What of every rank is `own` on this one. Asked for once for inputs of these shapes.

        All ranks see the same shapes, so either all of them ask or none does.
        """
        key = name, self._shapes
        if key not in self._known:
            found = torch.cat(self.ranks.tokens.gather(torch.tensor([own], device=device)))
            self._known[key] = [int(size) for size in found.tolist()]
        return self._known[key]

    def release(self) -> None:
        """Let go of what messages travel in, once no graph works in it any more."""
        self._held.clear()
        self._in_graphs.clear()

    def _room(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Memory that all layers' messages of this name travel in, one layer's after the other's.

        A backend keeps what it sends and receives until the device is done with it, and the host is
        layers ahead: of memory of their own their messages would take that many times as much.
        """
        size = math.prod(shape) * like.itemsize
        held = self._held.get(name)
        if held is None or held.numel() < size or held.device != like.device:
            held = torch.empty(size, dtype=torch.uint8, device=like.device)
            self._held[name] = held
        if _is_captured():
            self._in_graphs[held.data_ptr()] = held
        return held[:size].view(like.dtype).view(shape)

    def _heads_for_tokens(
        self, qkv: Sequence[Tensor], places: list[Places], number: int
    ) -> Callable[[], Sequence[Tensor]]:
        """All tokens of the group and this rank's heads, for all heads of this rank's tokens.

        q, k and v are (batch, tokens, ranks, heads of each, channels). A token's three lie side by
        side on the way, so that they are one message and arrive where they belong.
        """
        group = self.ranks.ulysses
        mine = places[group.index]
        batch, own, _, part, channels = qkv[0].shape
        whole = sum(of_all.stop - of_all.start for place in places for _, of_all in place)
        made = self._room(f"made {number}", qkv[0], batch, whole, 3, part, channels)
        sends, receives = [], []
        for peer in self._peers():
            sent = self._room(f"sent {number} {peer}", made, batch, own, 3, part, channels)
            for i, x in enumerate(qkv):
                _copy(sent[:, :, i], x[:, :, peer])
            sends += [(peer, video[of_own]) for video in sent for of_own, _ in mine]
            receives += [(peer, video[of_all]) for video in made for _, of_all in places[peer]]
        finish = group.begin(sends, receives)
        for i, x in enumerate(qkv):  # while the others' travel
            for of_own, of_all in mine:
                _copy(made[:, of_all, i], x[:, of_own, group.index])

        def arrived() -> Sequence[Tensor]:
            finish()
            return made.unbind(2)

        return arrived

    def _tokens_for_heads(
        self, out: Tensor, places: list[Places], to: Tensor, number: int
    ) -> Callable[[], None]:
        """The way back, into `to`: (batch, tokens, ranks, heads of each, channels)."""
        group = self.ranks.ulysses
        mine = places[group.index]
        batch, own = to.shape[:2]
        out = out.contiguous()
        sends, receives, coming = [], [], {}
        for peer in self._peers():
            coming[peer] = self._room(f"back {number} {peer}", out, batch, own, *out.shape[2:])
            sends += [(peer, video[of_all]) for video in out for _, of_all in places[peer]]
            receives += [(peer, video[of_own]) for video in coming[peer] for of_own, _ in mine]
        finish = group.begin(sends, receives)

        def put() -> None:
            for of_own, of_all in mine:
                _copy(to[:, of_own, group.index], out[:, of_all])
            finish()
            for peer, arrived in coming.items():
                _copy(to[:, :, peer], arrived)

        return put

    def _peers(self) -> list[int]:
        group = self.ranks.ulysses
        return [peer for peer in range(group.size) if peer != group.index]

    def _round(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], part: Partial) -> Tensor:
        """Attention over the keys and values of all of the ring, merged in FP32."""
        group = self.ranks.ring
        to, source = (group.index + 1) % group.size, (group.index - 1) % group.size
        merged: Tensor | None = None
        total: Tensor | None = None
        held = torch.stack([k, v])
        for turn in range(group.size):
            sends, receives = [], []
            if turn + 1 < group.size:
                tokens = lengths[(group.index - turn - 1) % group.size]
                coming = held.new_empty(2, held.shape[1], tokens, *held.shape[3:])
                sends, receives = [(to, held)], [(source, coming)]
            arrived = group.begin(sends, receives)  # the next come while these are worked on
            out, lse = part(q, held[0], held[1])
            arrived()
            lse = lse.transpose(1, 2)[..., None]
            if merged is None or total is None:
                merged, total = out.float(), lse
            else:
                both = torch.logaddexp(total, lse)
                merged = merged * (total - both).exp() + out.float() * (lse - both).exp()
                total = both
            if receives:
                held = coming
        assert merged is not None
        return merged.to(q.dtype)


def _is_captured() -> bool:
    """Whether what is launched now goes into a CUDA graph, to happen when that is replayed."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _pieces(videos: int, heads: int, wanted: int) -> list[Piece]:
    """Pieces as even as can be: of videos, as many as there are, and else of heads."""
    by_videos = min(wanted, videos)
    by_heads = min(-(-wanted // by_videos), heads)
    return [(v, h) for v in _slices(videos, by_videos) for h in _slices(heads, by_heads)]


def _slices(size: int, count: int) -> list[Range]:
    ends = [size * i // count for i in range(count + 1)]
    return [slice(*both) for both in itertools.pairwise(ends)]


def _cut(x: Tensor, piece: Piece) -> Tensor:
    """Of (batch, tokens, ranks, heads of each, channels)."""
    videos, heads = piece
    return x[videos, :, :, heads]


def _ranges(lengths: Sequence[int]) -> list[Range]:
    ends = itertools.accumulate(lengths, initial=0)
    return [slice(*both) for both in itertools.pairwise(ends)]


def _shares(size: int, ranks: int) -> list[int]:
    """As torch.tensor_split gives them out, and diffusers' hooks by it."""
    return [size // ranks + (rank < size % ranks) for rank in range(ranks)]


@functools.cache  # asked in every layer, whose host has no time to lose
def _places(texts: tuple[int, ...], lengths: tuple[int, ...]) -> list[Places]:
    """For each rank, where its tokens (its share of the text first) lie among those of all."""
    videos = [length - text for length, text in zip(lengths, texts, strict=True)]
    of_all = _ranges([*texts, *videos])
    found = []
    for rank, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        both = [
            (slice(0, text), of_all[rank]),
            (slice(text, length), of_all[len(texts) + rank]),
        ]
        found.append([place for place in both if place[0].start < place[0].stop])
    return found


WIDE = torch.complex128  # the largest element that torch copies as it is


def _copy(to: Tensor, source: Tensor) -> None:
    """Copy one tensor to the other, sixteen bytes at once where both lie so.

    torch copies what is not contiguous element by element, each with divisions of its own.
    """
    size = WIDE.itemsize // source.itemsize
    if all(_in_steps_of(size, x) for x in (to, source)):
        to, source = to.view(WIDE), source.view(WIDE)
    to.copy_(source)


def _in_steps_of(size: int, x: Tensor) -> bool:
    *outer, last = x.stride()
    even = not any(n % size for n in (x.shape[-1], x.storage_offset(), *outer))
    return last == 1 and even and x.data_ptr() % WIDE.itemsize == 0


class _Gathered:
    """A layer whose output is that of all tokens, from every rank's share."""

    def __init__(self, inner: Forward, attention: Attention, name: str, dim: int) -> None:
        self._inner, self._attention = inner, attention
        self._name, self._dim = name, dim

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        own = self._inner(*args, **kwargs)
        sizes = self._attention.sizes(self._name, own.shape[self._dim], own.device)
        group = self._attention.ranks.tokens
        return torch.cat(group.gather_uneven(own, sizes, self._dim), self._dim)


class Live(NamedTuple):
    """What an operator's number stands for: operators take tensors and numbers alone."""

    attention: Attention
    kernel: Kernel
    partial: Partial | None


_LIVE: list[Live] = []


# One node for torch.compile, which therefore traces none of the exchanges.
@custom_op("qbench::attention_over_ranks", mutates_args=())
def _operator(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
    live = _LIVE[number]
    return live.attention.compute(q, k, v, live).contiguous()


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
    return q.new_empty(q.shape)
