"""`import qbench`: a recipe on a live pipeline gives the run's own video, and can be taken back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from pipelines import tiny

import qbench
from qbench import calls
from qbench.optimizations import axes
from qbench.pipelines import specs
from qbench.recipe.schema import Recipe

MODEL = specs.find("tiny-cogvideox")
PROMPT, SEED = "a red star moves left on a navy background", 5


def _recipe(frames: int = 9, **variant: Any) -> Recipe:
    generation = {"steps": 4, "frames": frames}
    fields = {"name": "test", "generation": generation, "variant": variant}
    return Recipe.model_validate(fields)


def _plain() -> Any:
    """As a user loads it: everything in FP32."""
    from diffusers import CogVideoXPipeline

    pipe = CogVideoXPipeline.from_pretrained(MODEL.source)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _of_a_run(recipe: Recipe, prompts: tuple[str, ...] = (PROMPT,)) -> torch.Tensor:
    """What the stages of a run make: (videos, frames, 3, height, width)."""
    video = specs.load(MODEL, recipe.variant.dtype, "cpu")
    run = video.resolve(MODEL, recipe.generation, recipe.variant.step_share)
    axes.apply(video, recipe.variant, "cpu", run.steps)
    seeds = [SEED + number for number in range(len(prompts))]
    latents = video.denoise(
        run,
        video.encode(run, list(prompts)),
        torch.cat([video.noise(run, seed) for seed in seeds]),
        lambda _: None,
        generators=video.generators(seeds),
    )
    return video.decode(run, latents)


def _seeded(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "variant",
    [
        {"dtype": "fp32"},
        {"dtype": "bf16"},
        {"dtype": "fp16"},
        {"dtype": "bf16", "quantize": {"backend": "torchao", "scheme": "int8_weight_only"}},
        {"dtype": "bf16", "quantize": {"backend": "torchao", "scheme": "int8_dynamic"}},
        {"dtype": "bf16", "quantize": {"backend": "quanto", "scheme": "int8_weight_only"}},
        {"dtype": "bf16", "compile": {}},
        {"dtype": "bf16", "attention": "math"},
        {"dtype": "bf16", "cache": {"kind": "taylorseer", "interval": 2}},
        {"dtype": "bf16", "cache": {"kind": "first_block", "threshold": 0.2}},
        {"dtype": "bf16", "cache": {"kind": "pab", "interval": 2}},
        {"dtype": "bf16", "cache": {"kind": "faster", "interval": 2}},
        {"dtype": "bf16", "decode": {"strips": True}},
        {"dtype": "bf16", "decode": {"split_norms": True}, "fuse_qkv": True},
        {"dtype": "bf16", "step_share": 0.5},
        {"dtype": "bf16", "memory": {"vae_tiling": True, "vae_slicing": True}},
        {"dtype": "bf16", "fault": "channels_swapped"},
    ],
    ids=lambda variant: "-".join(map(str, variant)) + str(list(variant.values())[-1])[:24],
)
def test_diffusers_own_call_gives_the_video_of_a_run_to_the_last_digit(
    variant: dict[str, Any],
) -> None:
    # The VAE decodes more frames than these few in several goes.
    recipe = _recipe(17 if {"decode", "memory"} & variant.keys() else 9, **variant)
    pipe = qbench.apply(_plain(), recipe)
    found = pipe(PROMPT, generator=_seeded(), output_type="pt").frames
    assert torch.equal(found, _of_a_run(recipe))
    if "cache" in variant:  # a second video starts anew
        again = pipe(PROMPT, generator=_seeded(), output_type="pt").frames
        assert torch.equal(again, found)


def test_arguments_of_the_call_mean_what_they_mean_to_diffusers() -> None:
    recipe = _recipe(dtype="bf16")
    pipe = qbench.apply(_plain(), recipe)
    two = ["a red star", "a blue circle"]
    expected = _of_a_run(recipe, tuple(two))
    own = [_seeded(SEED), _seeded(SEED + 1)]
    frames = pipe(two, generator=own, output_type="np").frames
    assert (torch.from_numpy(frames).permute(0, 1, 4, 2, 3) == expected).all()
    shape = (1, 3, 16, 8, 8)
    noise = torch.randn(shape, generator=_seeded())
    alone = _of_a_run(recipe)
    (by_latents,) = pipe(prompt=PROMPT, latents=noise, output_type="pt", return_dict=False)
    assert torch.equal(by_latents, alone)
    longer = recipe.model_copy(
        update={"generation": recipe.generation.model_copy(update={"steps": 6, "guidance": 3.0})}
    )
    asked = {"num_inference_steps": 6, "guidance_scale": 3}
    assert torch.equal(
        pipe(PROMPT, generator=_seeded(), output_type="pt", **asked).frames, _of_a_run(longer)
    )
    steps: list[int] = []

    def note(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return values

    images = pipe(PROMPT, generator=_seeded(), callback_on_step_end=note).frames
    assert steps == [0, 1, 2, 3]
    assert len(images[0]) == 9
    assert images[0][0].size == (64, 64)
    latents = pipe(PROMPT, generator=_seeded(), output_type="latent").frames
    assert latents.shape == shape
    negative = pipe(PROMPT, negative_prompt="a cat", generator=_seeded(), output_type="pt").frames
    assert not torch.equal(negative, alone)
    with pytest.raises(qbench.InputError, match="generator"):
        pipe(two, generator=[_seeded()])
    with pytest.raises(qbench.InputError, match="output_type"):
        pipe(PROMPT, output_type="gif")


def test_a_cache_counts_from_the_steps_of_each_call() -> None:
    short = _recipe(dtype="bf16", cache={"kind": "taylorseer", "interval": 2})
    pipe = qbench.apply(_plain(), short)
    longer = short.model_copy(
        update={"generation": short.generation.model_copy(update={"steps": 8})}
    )
    for recipe, asked in ((longer, {"num_inference_steps": 8}), (short, {})):
        found = pipe(PROMPT, generator=_seeded(), output_type="pt", **asked).frames
        assert torch.equal(found, _of_a_run(recipe))


def test_calls_that_a_cache_cannot_serve_say_so_and_leave_it_on(tmp_path: Path) -> None:
    """FasterCache without guidance, and ratios of MagCache for another number of steps."""
    asked = {
        "num_frames": tiny.FRAMES, "height": tiny.HEIGHT, "width": tiny.WIDTH,
        "max_sequence_length": 24, "output_type": "latent",
    }  # fmt: skip
    ratios = {"kind": "mag", "threshold": 0.1, "first": 1, "ratios": [1.0] * 4}
    for cache, change, said in (
        ({"kind": "faster", "interval": 2}, {"guidance_scale": 1.0}, "guidance above 1"),
        (ratios, {"num_inference_steps": 5}, "4 of them, and a video has 5"),
    ):
        pipe = qbench.apply(tiny.build("cogvideox", tmp_path).pipe, _recipe(cache=cache))
        before = pipe(PROMPT, generator=_seeded(), **asked).frames
        with pytest.raises((qbench.InputError, qbench.Unsupported), match=said):
            pipe(PROMPT, generator=_seeded(), **(asked | change))
        assert torch.equal(pipe(PROMPT, generator=_seeded(), **asked).frames, before)


def test_a_call_with_too_few_frames_for_compiled_int8_gemms_is_refused(tmp_path: Path) -> None:
    """On a GPU, which alone has that limit; it is another number than the recipe's."""
    pipe = tiny.build("unet", tmp_path, torch.bfloat16).pipe
    quantize = {"backend": "torchao", "scheme": "int8_dynamic", "exclude": ["time_embedding"]}
    qbench.apply(pipe, _recipe(dtype="bf16", quantize=quantize, compile={"scope": "blocks"}))
    state = getattr(pipe, calls.STATE)
    state._machine = dataclasses.replace(state._machine, device="cuda", capability=(9, 0))
    with pytest.raises(qbench.Unsupported, match="so few frames"):
        pipe(PROMPT, num_frames=8, height=tiny.HEIGHT, width=tiny.WIDTH)


def test_restore_gives_the_pipeline_back_and_says_what_stays() -> None:
    from diffusers import CogVideoXPipeline

    pipe = CogVideoXPipeline.from_pretrained(MODEL.source, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "max_sequence_length": 24, "output_type": "pt"}
    before = pipe(PROMPT, generator=_seeded(), **call).frames
    scheduler = pipe.scheduler
    recipe = _recipe(
        dtype="bf16",
        fuse_qkv=True,
        attention="math",
        cache={"kind": "taylorseer", "interval": 2},
        decode={"fused": False, "split_norms": True, "strips": True},
    )
    qbench.apply(pipe, recipe)
    assert type(pipe).__name__ == "CogVideoXPipeline"
    assert isinstance(pipe, CogVideoXPipeline)
    with pytest.raises(qbench.InputError, match="restore"):
        qbench.apply(pipe, recipe)
    pipe(PROMPT)
    assert qbench.restore(pipe) == []
    assert type(pipe) is CogVideoXPipeline
    assert pipe.scheduler is scheduler
    assert torch.equal(pipe(PROMPT, generator=_seeded(), **call).frames, before)
    with pytest.raises(qbench.InputError, match="no recipe"):
        qbench.restore(pipe)
    with pytest.raises(qbench.InputError, match="loaded in bf16"):
        qbench.apply(pipe, _recipe(dtype="fp32"))
    quantize = {"backend": "torchao", "scheme": "int8_weight_only"}
    qbench.apply(pipe, _recipe(dtype="bf16", quantize=quantize))
    (said,) = qbench.restore(pipe)
    assert said.startswith("quantize: ")


def test_what_cannot_run_leaves_the_pipeline_as_it_was() -> None:
    pipe = _plain()
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    with pytest.raises(qbench.Unsupported, match="Hopper"):
        qbench.apply(pipe, _recipe(dtype="bf16", attention="fp8"))
    with pytest.raises(qbench.InputError, match="no driver for a int"):
        qbench.apply(7, "int8")  # type: ignore[type-var]
    after = pipe.transformer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("how", ["model", "group"])
def test_no_engine_is_built_of_a_denoiser_that_is_offloaded(how: str, tmp_path: Path) -> None:
    """Between calls it lies on the CPU, for which the engine would be built."""
    pipe = tiny.build("cogvideox", tmp_path).pipe
    if how == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(qbench.InputError, match=r"qbench\.apply first, and offload .* then"):
        qbench.apply(pipe, _recipe(dtype="fp32", engine="onnxruntime"))
    assert type(pipe).__name__ == type(_plain()).__name__
    qbench.apply(pipe, _recipe(dtype="bf16", attention="math"))


def test_recipes_are_found_by_name_path_and_as_they_are(tmp_path: Path) -> None:
    fast = qbench.load_recipe("fast")
    assert fast.variant.attention == "fp8"
    assert qbench.load_recipe(fast) is fast
    assert qbench.load_recipe(ROOT / "recipes" / "fast.yaml") == fast
    assert qbench.load_recipe("int8", {"generation.steps": 3}).generation.steps == 3
    with pytest.raises(qbench.InputError, match="did you mean 'fast'"):
        qbench.load_recipe("fasst")
    with pytest.raises(qbench.InputError, match="name one of them"):
        qbench.load_recipe("cache")


def test_import_is_instant() -> None:
    """Nothing heavy is imported before a function is called."""
    code = (
        "import sys, qbench; qbench.apply, qbench.load_recipe; "
        "print([m for m in ('torch', 'diffusers', 'pydantic', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_measure_is_qbench_run(tmp_path: Path) -> None:
    record = qbench.measure(
        _plain(),
        "bf16",
        prompts=["a red star", "a blue circle"],
        out=tmp_path,
        overrides={
            "generation.steps": 2,
            "measure.repeats": 1,
            "measure.warmup": 0,
            "measure.interleave": False,
            "device": "cpu",
        },
    )
    assert record.status == "ok", record.reason
    assert record.recipe.name == "bf16"
    assert record.videos == 2
    assert record.reference is not None
    assert record.reference.recipe == "fp32"


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs an NVIDIA Hopper GPU",
)
@pytest.mark.parametrize("name", ["fast", "fast-cached"])
def test_fast_on_a_gpu_gives_the_video_of_a_run(name: str) -> None:
    recipe = qbench.load_recipe(name, {"generation.steps": 6})
    video = specs.load(MODEL, recipe.variant.dtype, "cuda")
    run = video.resolve(MODEL, recipe.generation)
    axes.apply(video, recipe.variant, "cuda", run.steps)
    conditioning, noise = video.encode(run, [PROMPT]), video.noise(run, SEED)
    own = video.generators([SEED])
    expected = video.decode(
        run, video.denoise(run, conditioning, noise, lambda _: None, generators=own)
    )
    pipe = qbench.apply(_plain().to("cuda"), recipe)
    assert torch.equal(pipe(PROMPT, generator=_seeded(), output_type="pt").frames, expected)
    assert qbench.restore(pipe) != []  # the linears' weights stay FP8
