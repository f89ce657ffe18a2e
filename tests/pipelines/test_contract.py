"""What every family keeps to, on tiny random pipelines: one suite for all of them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FRAMES, HEIGHT, PROMPTS, STEPS, TINY, WIDTH, build, denoised, inputs, settings

from qbench import support
from qbench.errors import InputError, Unsupported
from qbench.meters import flops
from qbench.optimizations import axes
from qbench.optimizations.rules import Machine
from qbench.pipelines import noise
from qbench.pipelines.base import VideoPipeline
from qbench.recipe.schema import Variant

FAMILIES = pytest.mark.parametrize("name", list(TINY))


@pytest.fixture
def video(name: str, tmp_path: Path) -> VideoPipeline:
    return build(name, tmp_path)


@FAMILIES
def test_stages_together_are_what_the_pipeline_itself_makes(video: VideoPipeline) -> None:
    run, seen = settings(video), []
    given, latents = inputs(video, run, [0, 1])
    own = video.generators([0, 1])
    made = video.denoise(run, given, latents.clone(), seen.append, generators=own)
    frames = video.decode(run, made)
    longest = {"max_sequence_length": run.text_tokens} if video.part == "transformer" else {}
    whole = video.pipe(
        PROMPTS, num_frames=FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS,
        guidance_scale=run.guidance, latents=latents, output_type="pt", **longest,
    ).frames  # fmt: skip
    assert seen == list(range(STEPS))
    assert tuple(frames.shape) == (2, FRAMES, 3, HEIGHT, WIDTH)
    assert torch.allclose(frames, whole, atol=1e-5)
    assert frames.std() > 0.01


@FAMILIES
def test_shapes_are_what_the_family_says(video: VideoPipeline) -> None:
    run = settings(video)
    given, latents = inputs(video, run, [0])
    assert given.positive.shape == given.negative.shape == video.embeddings_shape(run, 1)
    assert latents.shape == video.latents_shape(run)
    assert latents.dtype == torch.float32
    unguided = settings(video, guidance=1.0)
    assert video.encode(unguided, PROMPTS[:1]).negative is None
    assert torch.isfinite(denoised(video, unguided, [0])).all()


@FAMILIES
def test_a_video_depends_on_its_seed_and_on_nothing_that_came_before(video: VideoPipeline) -> None:
    """Noise of the scheduler too: an ancestral one adds some after every step."""
    import diffusers

    kind, fields = {
        "CogVideoXPipeline": ("CogVideoXDPMScheduler", {}),
        "TextToVideoSDPipeline": ("DDPMScheduler", {}),
        "WanPipeline": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    }[video.pipeline_class]
    config = dict(video.pipe.scheduler.config) | fields
    video.pipe.scheduler = getattr(diffusers, kind).from_config(config)
    run = settings(video)
    first = denoised(video, run, [1])
    torch.manual_seed(99)
    torch.randn(7)
    denoised(video, run, [0], steps=1)
    assert torch.equal(denoised(video, run, [1]), first)
    assert not torch.allclose(denoised(video, run, [3]), first, atol=1e-2)
    together = denoised(video, run, [0, 1])
    assert torch.allclose(together[1:], first, atol=1e-3)
    assert "step" not in vars(video.pipe.scheduler)


@FAMILIES
def test_sizes_and_frames_that_are_accepted_come_out_as_asked(video: VideoPipeline) -> None:
    """Every count of frames up to 20, by the VAE itself: either refused, or made in full."""
    grid, accepted = video.grid(video.configs()), []
    side = max(16, grid.side)
    for frames in range(1, 21):
        if grid.made(frames) != frames:
            with pytest.raises(InputError, match=r"generation.frames.*the nearest .* is \d+"):
                settings(video, frames=frames)
            continue
        run = settings(video, frames=frames, height=side, width=side)
        latents = video.noise(run, 0).to(video.latents_dtype())
        assert video.decode(run, latents).shape[1:] == (frames, 3, side, side)
        accepted.append(frames)
    assert {1, 9, 17} <= set(accepted) or video.part == "unet"
    with pytest.raises(InputError, match=f"multiple of {grid.side}"):
        settings(video, height=2 * side + grid.side // 2)


@FAMILIES
def test_captured_inputs_are_all_that_the_denoiser_needs(video: VideoPipeline) -> None:
    """Called with them it gives what it gave in the loop, at every step, for both halves."""
    run = settings(video)
    given, latents = inputs(video, run, [0])
    module, outputs = video.denoiser, []
    hook = module.register_forward_hook(lambda *parts: outputs.append(parts[-1][0].clone()))
    steps = video.captured(run, given, latents, steps=STEPS)
    hook.remove()
    assert video.denoiser is module
    assert [len(calls) for calls in steps] == [2 if video.separate_guidance else 1] * STEPS
    calls = [call for step in steps for call in step]
    with torch.no_grad():
        for call, expected in zip(calls, outputs, strict=True):
            assert torch.equal(module(**call, return_dict=False)[0], expected)
    assert len({call["timestep"].flatten()[0].item() for call in calls}) == STEPS
    rows = sum(next(iter(call.values())).shape[0] for call in steps[0])
    assert rows == 2
    assert ("image_rotary_emb" in calls[0]) == bool(
        module.config.get("use_rotary_positional_embeddings")
    )


@FAMILIES
def test_work_of_a_step_is_that_of_all_its_calls(video: VideoPipeline) -> None:
    run = settings(video)
    calls = video.step_inputs(run)
    found = flops.count(video.denoiser, calls, 4)
    written_out = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter, written_out, torch.no_grad():
        for call in calls:
            video.denoiser(**call)
    assert found.flop == pytest.approx(counter.get_total_flops())
    assert found.attention_flop > 0
    alone = flops.count(video.denoiser, video.step_inputs(settings(video, guidance=1.0)), 4)
    assert found.flop == pytest.approx(2 * alone.flop, rel=0.05)


@FAMILIES
@pytest.mark.parametrize("fused", [False, True])
def test_a_kernel_computes_self_attention(video: VideoPipeline, fused: bool) -> None:
    run, seen = settings(video), []
    plain = denoised(video, run, [0])
    axes.apply(video, Variant(fuse_qkv=fused), "cpu", steps=STEPS)

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        assert q.shape == k.shape == v.shape
        seen.append(q.shape)
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*turned).transpose(1, 2)

    video.set_attention(kernel)
    assert torch.allclose(denoised(video, run, [0]), plain, atol=1e-4)
    assert len(seen) >= STEPS
    video.set_attention(lambda q, k, v: v)
    assert not torch.allclose(denoised(video, run, [0]), plain, atol=1e-3)


AXES: list[tuple[dict[str, Any], float]] = [
    ({"fuse_qkv": True}, 1e-4),
    ({"attention": "math"}, 1e-4),
    ({"quantize": {"backend": "torchao", "scheme": "int8_weight_only"}}, 0.1),
    ({"quantize": {"backend": "qbench", "scheme": "fp8_dynamic_row"}, "fuse_qkv": True}, 0.3),
    ({"cache": {"kind": "first_block", "threshold": 1e-9}}, 1e-4),
    ({"memory": {"vae_tiling": True, "vae_slicing": True}}, 1e-4),
    ({"decode": {"split_norms": True}}, 1e-4),
    ({"decode": {"fused": True}}, 1e-4),
]


@FAMILIES
@pytest.mark.parametrize(("fields", "most"), AXES, ids=lambda value: str(value)[:40])
def test_an_axis_works_or_says_why_not(
    name: str, tmp_path: Path, fields: dict[str, Any], most: float
) -> None:
    video = build(name, tmp_path)
    run = settings(video)
    plain = denoised(video, run, [0])
    try:
        axes.apply(video, Variant.model_validate(fields), "cpu", STEPS)
    except Unsupported:
        return  # a skipped row with the reason
    found = denoised(video, run, [0])
    error = ((found - plain).norm() / plain.norm()).item()
    assert error <= most
    assert video.decode(run, found).shape[1] == FRAMES


@pytest.mark.parametrize("kind", ["taylorseer", "first_block", "pab", "faster"])
def test_caches_keep_the_two_calls_of_guidance_apart_or_are_refused(
    kind: str, tmp_path: Path
) -> None:
    """A cached call gives what the same half gave before, never what the other half did."""
    video = build("wan", tmp_path)
    own = {"threshold": 10.0} if kind == "first_block" else {"interval": 2}
    variant = Variant.model_validate({"cache": {"kind": kind, **own}})
    if kind in ("pab", "faster"):
        model = support.model_facts(video, guided=True, frames=FRAMES)
        reason = support.why_not(variant, Machine("cpu", model=model))
        assert "one state for both halves" in str(reason)
        return
    run, computed, outputs = settings(video, steps=8), [0], []
    video.denoiser.blocks[-1].attn1.to_out[0].register_forward_hook(
        lambda *_: computed.__setitem__(0, computed[0] + 1)
    )
    axes.apply(video, variant, "cpu", steps=8)
    video.denoiser.register_forward_hook(lambda *parts: outputs.append(parts[-1][0].flatten()))
    denoised(video, run, [0])
    assert computed[0] < 16
    assert computed[0] % 2 == 0
    # What guidance amplifies, the difference of the two, goes on from step to step; with one state
    # for both it turns round (cosine -0.2), or a half is skipped before it was ever computed.
    guided = [a - b for a, b in zip(outputs[::2], outputs[1::2], strict=True)]
    for before, after in itertools.pairwise(guided):
        assert torch.cosine_similarity(before, after, dim=0) > 0.3


@FAMILIES
def test_a_skipped_block_changes_the_video_and_nothing_breaks(video: VideoPipeline) -> None:
    run = settings(video)
    plain = denoised(video, run, [0])
    video.skip(video.repeated_blocks()[-1])
    found = denoised(video, run, [0])
    assert torch.isfinite(found).all()
    assert not torch.allclose(found, plain, atol=1e-4)


@FAMILIES
def test_denoiser_may_have_another_dtype_than_the_text_encoder(name: str, tmp_path: Path) -> None:
    video = build(name, tmp_path, torch.bfloat16)
    run = settings(video)
    assert video.encode(run, PROMPTS[:1]).positive.dtype == torch.bfloat16
    made = denoised(video, run, [0])
    assert made.dtype == video.latents_dtype()
    assert torch.isfinite(made).all()


@FAMILIES
def test_without_a_text_encoder_embeddings_are_the_same_noise_at_every_call(
    video: VideoPipeline,
) -> None:
    run = settings(video)
    video.pipe.text_encoder = None
    first, second = (video.encode(run, PROMPTS) for _ in range(2))
    assert torch.equal(first.positive, second.positive)
    assert first.positive.shape == video.embeddings_shape(run, 2)
    assert torch.isfinite(denoised(video, run, [0])).all()


@FAMILIES
def test_dynamic_guidance_is_the_pipelines_own_or_is_refused(video: VideoPipeline) -> None:
    if not video.dynamic_cfg:
        with pytest.raises(InputError, match="has no dynamic guidance"):
            settings(video, dynamic_cfg=True)
        return
    run = settings(video, dynamic_cfg=True)
    found = denoised(video, run, [0])
    given, latents = inputs(video, run, [0])
    theirs = video.pipe(
        prompt_embeds=given.positive, negative_prompt_embeds=given.negative, latents=latents,
        num_frames=FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS,
        guidance_scale=run.guidance, use_dynamic_cfg=True, output_type="latent",
    ).frames  # fmt: skip
    assert torch.equal(found, theirs)
    assert not torch.allclose(found, denoised(video, settings(video), [0]), atol=1e-3)


@FAMILIES
def test_latents_can_be_exchanged_between_steps(video: VideoPipeline) -> None:
    run, free, forced = settings(video), [], []

    def keep(_: int, latents: torch.Tensor) -> torch.Tensor:
        free.append(latents.clone())
        return latents

    def replace(step: int, latents: torch.Tensor) -> torch.Tensor:
        forced.append(latents.clone())
        return free[step].clone()

    denoised(video, run, [0], exchange=keep)
    own = video.generators([0])
    given, _ = inputs(video, run, [0])
    video.denoise(run, given, video.noise(run, 5), lambda _: None, generators=own, exchange=replace)
    assert not torch.allclose(forced[0], free[0])  # other noise
    if not video.pipe.scheduler.config.get("solver_order"):  # which remembers earlier steps
        assert torch.allclose(forced[1], free[1], atol=1e-4)


def test_a_scheduler_that_draws_otherwise_is_refused() -> None:
    class Uniform:
        def step(self) -> torch.Tensor:
            return torch.rand(2)

    scheduler = Uniform()
    with pytest.raises(Unsupported, match="draws by rand"), noise.seeded(scheduler, []):
        scheduler.step()
    assert scheduler.step().shape == (2,)


def test_noise_of_a_scheduler_is_the_same_in_every_dtype_and_is_not_the_initial_noise() -> None:
    class Normal:
        def step(self, like: torch.Tensor) -> torch.Tensor:
            return torch.randn_like(like) + torch.randn(like.shape, dtype=like.dtype)

    found = []
    for dtype in (torch.float32, torch.bfloat16):
        scheduler = Normal()
        with noise.seeded(scheduler, noise.generators([7])):
            found.append(scheduler.step(torch.zeros(1, 4096, dtype=dtype)).float())
    assert torch.allclose(*found, atol=0.05)
    one = noise.initial((1, 4096), 7)
    assert abs(torch.corrcoef(torch.cat([one, found[0]]))[0, 1]) < 0.1


@FAMILIES
def test_linears_that_see_one_row_a_video_or_a_frame_are_those_that_the_family_names(
    video: VideoPipeline,
) -> None:
    """An INT8 GEMM of so few rows is none that a GPU computes."""
    rows: dict[str, int] = {}
    linears = {
        layer: name
        for name, layer in video.denoiser.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }

    def see(layer: torch.nn.Module, given: tuple[Any, ...]) -> None:
        rows[linears[layer]] = given[0].numel() // given[0].shape[-1]

    for layer in linears:
        layer.register_forward_pre_hook(see)
    denoised(video, settings(video, guidance=1.0), [0], steps=1)
    for count, parts in ((1, video.one_row), (FRAMES, video.row_a_frame)):
        found = {name for name, seen in rows.items() if seen == count}
        assert found == {name for name in rows if any(part in name for part in parts)}
    assert video.one_row


@FAMILIES
@pytest.mark.parametrize("scope", ["blocks", "model", "engine"])
def test_int8_gemms_of_one_row_are_refused_where_a_gpu_would_compile_them(
    video: VideoPipeline, scope: str
) -> None:
    def why_not(device: str = "cuda", **more: Any) -> str:
        quantize = {"backend": "torchao", "scheme": "int8_dynamic"} | more
        compiled = {"engine": "aoti"} if scope == "engine" else {"compile": {"scope": scope}}
        variant = Variant.model_validate({"quantize": quantize} | compiled)
        machine = Machine(device, (9, 0), frozenset(support.PACKAGES), model=model)
        return support.why_not(variant, machine) or ""

    model = support.model_facts(video, guided=True, frames=24)
    lone = sorted(model.one_row & model.in_blocks if scope == "blocks" else model.one_row)
    assert ("16 rows" in why_not()) == bool(lone)
    assert "16 rows" not in why_not("cpu")
    assert "16 rows" not in why_not(exclude=list(video.one_row))
    for name in lone:
        others = dict.fromkeys(set(lone) - {name}, "int8_weight_only")
        assert "16 rows" in why_not(layers=others)
        assert "16 rows" not in why_not(layers=others | {name: "none"})


@pytest.mark.parametrize(
    ("frames", "guided", "cfg", "refused"),
    [(8, True, 1, True), (9, True, 1, False), (16, False, 1, True), (17, False, 1, False),
     (16, True, 2, True), (17, True, 2, False)],
)  # fmt: skip
def test_int8_gemms_of_a_row_a_frame_are_refused_where_there_are_too_few_of_them(
    frames: int, guided: bool, cfg: int, refused: bool, tmp_path: Path
) -> None:
    """A UNet's: 17 rows are the least that torch._int_mm takes, and halves of guidance count."""
    model = support.model_facts(build("unet", tmp_path), guided, frames)
    machine = Machine("cuda", (9, 0), frozenset(support.PACKAGES), devices=2, model=model)

    def why_not(*exclude: str) -> str:
        quantize = {"backend": "torchao", "scheme": "int8_dynamic", "exclude": [*exclude]}
        parallel = {"cfg": cfg} if cfg > 1 else None
        fields = {"quantize": quantize, "compile": {"scope": "blocks"}, "parallel": parallel}
        return support.why_not(Variant.model_validate(fields), machine) or ""

    assert model.row_a_frame <= model.in_blocks
    assert ("of a UNet with so few frames [time_emb_proj]" in why_not()) == refused
    assert why_not("time_emb_proj") == ""
