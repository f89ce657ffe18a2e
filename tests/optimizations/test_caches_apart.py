"""Each cache held against an implementation of its own: the same steps skipped, the same latents.

Here the blocks are one block that decides; in diffusers and cache-dit each has hooks. Pipelines are
tiny and random, of both families: halves of guidance in one batch, and in calls of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import tiny
from torch import Tensor, nn

from qbench.errors import Unsupported
from qbench.optimizations import axes
from qbench.optimizations.caching import computed
from qbench.recipe.schema import Variant

STEPS, LAYERS = 8, 4
RATIOS = [1.0, 0.9, 1.05, 0.97, 1.02, 0.93, 1.01, 1.02]
FRONT_THRESHOLD, SEA_THRESHOLD = 0.55, 0.3
Inputs = tuple[Tensor, Tensor | None]  # of video and of text


@dataclass
class Half:
    """What a cache knows of one half of guidance, or of both where they come together."""

    step: int = -1
    computed: list[int] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    def skipped(self) -> int:
        return self.step - self.computed[-1] - 1


class Stack(nn.Module):
    """All blocks as one, which a policy runs or not."""

    def __init__(self, video: Any, policy: Callable[..., Inputs]) -> None:
        super().__init__()
        self.blocks = list(video.repeated_blocks())
        self.halves: dict[str, Half] = {}
        self.alphas = getattr(video.pipe.scheduler, "alphas_cumprod", None)
        self._policy, self._name = policy, ""
        module, plain = video.denoiser, video.denoiser.cache_context

        def context(name: str, **where: Any) -> Any:
            self._name = name
            return plain(name, **where)

        module.cache_context = context
        module.register_forward_pre_hook(self._see, with_kwargs=True)
        name = next(n for n, x in module.named_children() if isinstance(x, nn.ModuleList))
        setattr(module, name, nn.ModuleList([self]))

    def _see(self, _: Any, __: Any, kwargs: dict[str, Any]) -> None:
        self.latents, self.timestep = kwargs["hidden_states"], kwargs["timestep"]

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
        half = self.halves.setdefault(self._name, Half())
        half.step += 1

        def run(given: Inputs, first: int, last: int) -> Inputs:
            hidden, text = given
            for block in self.blocks[first:last]:
                out = block(hidden, text, *a, **k)
                hidden, text = out if isinstance(out, tuple) else (out, text)
            return hidden, text

        out = self._policy(self, half, (hidden_states, encoder_hidden_states), run)
        return out if k.keys() & {"image_rotary_emb", "attention_kwargs"} else out[0]


def _whole(half: Half, given: Inputs, run: Any) -> Inputs:
    out: Inputs = run(given, 0, LAYERS)
    half.computed.append(half.step)
    return out


def mag(_: Stack, half: Half, given: Inputs, run: Any, last: bool) -> Inputs:
    """Skip while the errors |1 - product of the ratios since| add up to no more than that."""
    first, threshold = 2, 0.06
    if half.computed and half.step >= first and not (last and half.step == STEPS - 1):
        since = range(max(first, half.computed[-1] + 1), half.step + 1)
        products = torch.tensor([RATIOS[i] for i in since]).cumprod(0)
        if float((1 - products).abs().sum()) <= threshold and len(since) <= 3:
            return given[0] + half.kept["residual"], given[1]
    out = _whole(half, given, run)
    half.kept["residual"] = out[0] - given[0]
    return out


def by_front(
    front: int, back: int, first: int, order: int, half: Half, given: Inputs, run: Any, last: bool
) -> Inputs:
    """First-block cache, and DBCache of several: compare the front blocks' residual.

    Of order 1 what the middle blocks add is drawn on in a line through the last two of them.
    """
    ahead = run(given, 0, front)
    moved, kept = ahead[0] - given[0], half.kept
    must = half.step < first or (last and half.step == STEPS - 1) or not kept
    if must or _change(moved, kept["moved"]) > FRONT_THRESHOLD:
        out = run(ahead, front, LAYERS - back)
        half.computed.append(half.step)
        text = 0 if out[1] is None else out[1] - ahead[1]
        now = (half.step, out[0] - ahead[0], text)
        kept |= {"moved": moved, "before": kept.get("now", now), "now": now}
    else:
        (was, *before), (at, *now) = kept["before"], kept["now"]
        far = order * (half.step - at) / max(1, at - was)
        video, text = (x + far * (x - y) for x, y in zip(now, before, strict=True))
        out = (ahead[0] + video, ahead[1] + text)
    return run(out, LAYERS - back, LAYERS)


def _change(x: Tensor, before: Tensor) -> float:
    return float((x - before).abs().mean() / before.abs().mean())


def sea(stack: Stack, half: Half, given: Inputs, run: Any, last: bool) -> Inputs:
    """Wiener-filter the latents, add up how far they move, extrapolate the residual."""
    kept_share = float(stack.alphas[int(stack.timestep[0])])
    a, b = kept_share**0.5, (1 - kept_share) ** 0.5
    seen = [_denoised(x.transpose(0, 1) / (a + b), a / (a + b)) for x in stack.latents]
    kept = half.kept
    if half.step == 0 or (last and half.step == STEPS - 1) or half.skipped() == 2:
        moved = float("inf")
    else:
        pairs = zip(seen, kept["seen"], strict=True)
        moved = kept["sum"] + sum(_change(x, y) for x, y in pairs) / len(seen)
    kept["seen"] = seen
    if moved < SEA_THRESHOLD:
        kept["sum"] = moved
        (was, before), now = (kept.get("before") or kept["residual"]), kept["residual"]
        slope = (now[1] - before) / (now[0] - was) if was != now[0] else 0
        return given[0] + now[1] + slope * (half.step - now[0]), kept["text"]
    kept["sum"] = 0.0
    out = _whole(half, given, run)
    kept["before"] = kept.get("residual")
    kept |= {"residual": (half.step, out[0] - given[0]), "text": out[1]}
    return out


def _denoised(x: Tensor, signal: float) -> Tensor:
    """x: (channels, frames, height, width), s x0 + (1 - s) noise; each axis has 1/f^3 power."""
    s, n = (min(max(value, 1e-6), 1 - 1e-6) for value in (signal, 1 - signal))
    gain = torch.ones(x.shape[1:])
    for axis, size in enumerate(x.shape[1:]):
        power = 1 / (torch.fft.fftfreq(size).abs() ** 3 + 1e-16)
        shape = [size if other == axis else 1 for other in range(3)]
        gain = gain * (s * power / (s * s * power + n * n + 1e-16)).view(shape)
    spectrum = torch.fft.fftn(x.float(), dim=(1, 2, 3)) * (gain / gain.mean())
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real


def _pipeline(family: str, scratch: Path) -> tuple[Any, Any]:
    video = tiny.build(family, scratch, num_layers=LAYERS)
    return video, tiny.settings(video, steps=STEPS)


FIRST_BLOCK = functools.partial(by_front, 1, 0, 1, 0)
DUAL_BLOCK = functools.partial(by_front, 2, 1, 2, 0)
TAYLOR = functools.partial(by_front, 2, 1, 4, 1)  # cache-dit draws no line before step 4
FRONT = {"threshold": FRONT_THRESHOLD}
CASES: list[tuple[str, str, dict[str, Any], Any]] = [
    *(
        (family, kind, fields, policy)
        for family in ("cogvideox", "wan")
        for kind, fields, policy in (
            ("mag", {"threshold": 0.06, "first": 2, "ratios": RATIOS}, mag),
            ("first_block", FRONT, lambda _, *given: FIRST_BLOCK(*given)),
            (
                "dbcache",
                {**FRONT, "front": 2, "back": 1, "first": 2},
                lambda _, *given: DUAL_BLOCK(*given),
            ),
            (
                "dbcache",
                {**FRONT, "front": 2, "back": 1, "first": 4, "order": 1},
                lambda _, *given: TAYLOR(*given),
            ),
        )
    ),
    ("cogvideox", "sea", {"threshold": SEA_THRESHOLD}, sea),
]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(
    ("family", "kind", "fields", "policy"),
    CASES,
    ids=[f"{case[1]}-{case[0]}-{case[2].get('order', 0)}" for case in CASES],
)
def test_a_cache_is_what_its_paper_says(
    family: str, kind: str, fields: dict[str, Any], policy: Any, last: bool, tmp_path: Path
) -> None:
    if kind == "dbcache":
        pytest.importorskip("cache_dit")
    video, run = _pipeline(family, tmp_path)
    stack = Stack(video, lambda *given: policy(*given, last))
    expected = tiny.denoised(video, run, [3])
    halves = list(stack.halves.values())
    whole = [sum(step in x.computed for x in halves) / len(halves) for step in range(STEPS)]
    assert 1 < sum(whole) < STEPS
    assert whole[-1] == 1 or not last
    assert whole[-1] == 0 or last or kind != "mag"
    always = {"first_block": 1, "dbcache": 3}.get(kind, 0) / LAYERS

    video, run = _pipeline(family, tmp_path)
    fields = {"kind": kind, "last": last, **fields}
    applied = axes.apply(video, Variant.model_validate({"cache": fields}), "cpu", STEPS)
    assert applied.cached is not None
    for stop in (5, 1, None):  # whatever came before
        if stop:
            with pytest.raises(InterruptedError):
                _counted(video, run, applied.cached.counter, stop)
        got, shares = _counted(video, run, applied.cached.counter)
        assert shares == pytest.approx([x + (1 - x) * always for x in whole])
        assert torch.allclose(got, expected, atol=1e-4)
    assert applied.undo() == []
    plain, _ = _pipeline(family, tmp_path)
    assert torch.equal(tiny.denoised(video, run, [3]), tiny.denoised(plain, run, [3]))


def _counted(video: Any, run: Any, counter: Any, stop: int = STEPS) -> tuple[Tensor, list[float]]:
    """A video, and what of each step was computed; given up before step `stop`."""
    shares: list[float] = []
    counter.mark()

    def on_step(step: int) -> None:
        shares.append(counter.mark().blocks)
        if step + 1 == stop < STEPS:
            raise InterruptedError

    embeddings, noise = tiny.inputs(video, run, [3])
    own = video.generators([3])
    return video.denoise(run, embeddings, noise, on_step, generators=own), shares


def test_taylor_prediction_is_exact_of_a_line_and_not_of_a_parabola() -> None:
    """Differences stand for derivatives: of order 2 a square is off by a known amount.

    f(t) = t^2 at 0, 2 and 4, predicted for 4 + k: its second difference is 2, its first 6 where
    the derivative at 4 is 8, so that 2 k is missing.
    """
    from diffusers.hooks.taylorseer_cache import TaylorSeerState

    for function, order, missing in (
        (lambda t: 3 * t - 1, 1, lambda k: 0),
        (lambda t: t * t, 2, lambda k: 2 * k),
    ):
        state = TaylorSeerState(torch.float32, order)
        for t in (0, 2, 4):
            state.current_step = t
            state.update((torch.tensor([float(function(t))]),))
        for k in (1, 2):
            state.current_step = 4 + k
            (predicted,) = state.predict()
            assert predicted.item() == pytest.approx(function(4 + k) - missing(k))


def test_schedulers_of_another_kind(tmp_path: Path) -> None:
    """Two calls a step are refused; of 100 timesteps the ranges of papers are a tenth."""
    import diffusers

    video, _ = _pipeline("wan", tmp_path)
    kind = diffusers.FlowMatchHeunDiscreteScheduler
    video.pipe.scheduler = kind.from_config(video.pipe.scheduler.config)
    wanted = Variant.model_validate({"cache": {"kind": "taylorseer", "interval": 2}})
    with pytest.raises(Unsupported, match="FlowMatchHeunDiscreteScheduler calls the denoiser"):
        axes.apply(video, wanted, "cpu", STEPS)
    assert _attention_of_pab(1000, tmp_path) == [1, 1, 1, 0, 1, 0, 1, 1]
    assert _attention_of_pab(100, tmp_path) == [1, 1, 1, 0, 1, 0, 1, 1]


def _attention_of_pab(timesteps: int, scratch: Path) -> list[float | None]:
    """What of each step's attention is computed, with a scheduler of so many timesteps."""
    video, run = _pipeline("cogvideox", scratch)
    scheduler = video.pipe.scheduler
    config = {**scheduler.config, "num_train_timesteps": timesteps}
    video.pipe.scheduler = type(scheduler).from_config(config)
    wanted = Variant.model_validate({"cache": {"kind": "pab", "interval": 2}})
    applied, shares = axes.apply(video, wanted, "cpu", STEPS), []
    assert applied.cached is not None
    counter = applied.cached.counter
    own = video.generators([3])
    video.denoise(
        run, *tiny.inputs(video, run, [3]), lambda _: shares.append(counter.mark().attention),
        generators=own,
    )  # fmt: skip
    return shares


def test_two_halves_of_guidance_and_attention_are_counted_by_flop() -> None:
    share = computed.Share(blocks=1.0, attention=0.5)
    assert share.of_flop(attention=0.6) == pytest.approx(0.7)
    steps = [computed.Share(1.0), computed.Share(0.25)]
    found = computed.summed([(3, steps), (1, steps[:1])], 0.0, "x 1", [])
    assert found is not None
    assert (found.videos, found.steps, found.least, found.most) == (4, 1.1875, 1.0, 1.25)
    assert found.by_step == [1.0, 0.1875]


def _skipped(video: Any, run: Any, stop: int = STEPS) -> list[bool]:
    """Of each step of a video, whether its last block was left out."""
    ran: list[bool] = [False]
    handle = video.repeated_blocks()[-1].ff.register_forward_hook(
        lambda *_: ran.__setitem__(-1, True)
    )

    def on_step(step: int) -> None:
        ran.append(False)
        if step + 1 == stop < STEPS:
            raise InterruptedError

    embeddings, noise = tiny.inputs(video, run, [3])
    try:
        video.denoise(run, embeddings, noise, on_step, generators=video.generators([3]))
    except InterruptedError:
        pass
    finally:
        handle.remove()
    return [not one for one in ran[:-1]]


def test_what_the_documents_say_of_the_libraries_by_themselves(tmp_path: Path) -> None:
    """docs/results/peers.md: where one of these no longer holds, the library was mended."""
    import diffusers

    video, run = _pipeline("cogvideox", tmp_path)
    module = video.denoiser
    module.enable_cache(diffusers.SeaCacheConfig(0.3, raw_vision_callback=lambda *_: [noise]))
    noise = torch.zeros(4, 3, 4, 6)
    assert not any(_skipped(video, run))  # the pipeline does not say where it is
    module.disable_cache()

    config = diffusers.MagCacheConfig(0.06, 3, 0.25, STEPS, RATIOS)
    module.enable_cache(config)
    whole = _skipped(video, run)
    assert _skipped(video, run) == whole
    assert whole[-1]  # the video is a skipped step's
    _skipped(video, run, stop=4)
    assert _skipped(video, run) != whole
    module.disable_cache()


@pytest.mark.skipif(hasattr(functools.partial, "__get__"), reason="Python 3.14's have one")
def test_cache_dit_by_itself_patches_a_class_and_cannot_always_let_go(tmp_path: Path) -> None:
    cache_dit = pytest.importorskip("cache_dit")
    video, _ = _pipeline("cogvideox", tmp_path)
    kind = type(video.pipe)
    plain = kind.__call__
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1)
    video.denoiser.forward = functools.partial(type(video.denoiser).forward, video.denoiser)
    try:
        cache_dit.enable_cache(video.pipe, cache_config=config)
        assert kind.__call__ is not plain
        with pytest.raises(AttributeError, match="__get__"):
            cache_dit.disable_cache(video.pipe)
    finally:
        kind.__call__ = plain
        for name in ("_original_call", "_is_cached"):
            if name in vars(kind):
                delattr(kind, name)
