"""A pipeline whose denoiser is a UNet, as Zeroscope's: small, untrained, in diffusers' layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, qbench

from qbench.errors import InputError, Unsupported
from qbench.meters import flops
from qbench.optimizations import axes
from qbench.optimizations.kernels.fp8_linear import Fp8FeedForward
from qbench.pipelines import known, specs
from qbench.pipelines.base import VideoPipeline
from qbench.pipelines.values import Resolved
from qbench.recipe.schema import Cache, Compile, Generation, Quantize, Recipe, Variant
from qbench.results import store
from qbench.run import generate, timing
from scripts.bench_overhead import lone_session

SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    out = tmp_path_factory.mktemp("textvideo")
    words = ["a</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (out / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (out / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt"), model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    pipeline = TextToVideoSDPipeline(
        vae=AutoencoderKL(
            block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=8,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet3DConditionModel(
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), cross_attention_dim=32,
            attention_head_dim=8, sample_size=8, **SMALL,
        ),
        scheduler=DDIMScheduler(),
    )  # fmt: skip
    pipeline.save_pretrained(out / "model")
    return out / "model"


def load(folder: Path, dtype: str = "fp32") -> VideoPipeline:
    return specs.load(specs.find(str(folder)), dtype, "cpu")  # type: ignore[arg-type]


def run_of(pipeline: VideoPipeline, **wanted: int) -> Resolved:
    asked = Generation(frames=5, height=64, width=64, steps=3, **wanted)
    return pipeline.resolve(known.Model("small", "small"), asked)


def inputs_of(pipeline: VideoPipeline, run: Resolved) -> tuple[Any, torch.Tensor]:
    """Embeddings and initial noise of one video."""
    return pipeline.encode(run, ["a cat"]), pipeline.noise(run, 1)


def denoised(pipeline: VideoPipeline, run: Resolved, *inputs: Any, **more: Any) -> torch.Tensor:
    """Final latents, of a scheduler that adds no noise."""
    on_step = more.pop("on_step", lambda _: None)
    return pipeline.denoise(run, *inputs, on_step, generators=pipeline.generators([0]), **more)


def test_stages_together_are_what_the_pipeline_itself_makes(folder: Path) -> None:
    pipeline = load(folder)
    for part in (pipeline.pipe.text_encoder, pipeline.pipe.vae):
        part.float()  # the pipeline's own call knows one dtype
    run = run_of(pipeline)
    noise = pipeline.noise(run, seed=7)
    embeddings = pipeline.encode(run, ["a cat"])
    seen: list[int] = []
    latents = denoised(pipeline, run, embeddings, noise, on_step=seen.append)
    ours = pipeline.decode(run, latents)
    whole = pipeline.pipe(
        "a cat", num_frames=5, height=64, width=64, num_inference_steps=3,
        guidance_scale=run.guidance, latents=noise, output_type="pt",
    ).frames  # fmt: skip
    assert seen == [0, 1, 2]
    assert tuple(ours.shape) == (1, 5, 3, 64, 64)
    assert torch.allclose(ours, whole, atol=1e-5)


def test_latents_can_be_exchanged_between_steps(folder: Path) -> None:
    pipeline = load(folder)
    run = run_of(pipeline)
    embeddings, noise = inputs_of(pipeline, run)
    free: list[torch.Tensor] = []

    def keep(_: int, latents: torch.Tensor) -> torch.Tensor:
        free.append(latents.clone())
        return latents

    denoised(pipeline, run, embeddings, noise, exchange=keep)
    other = pipeline.noise(run, 2)
    forced: list[torch.Tensor] = []

    def replace(step: int, latents: torch.Tensor) -> torch.Tensor:
        forced.append(latents.clone())
        return free[step]

    denoised(pipeline, run, embeddings, other, exchange=replace)
    assert not torch.allclose(forced[0], free[0])  # other noise
    assert torch.allclose(forced[1], free[1], atol=1e-5)  # from the first run's latents


def test_denoiser_may_have_another_dtype_than_the_text_encoder(folder: Path) -> None:
    pipeline = load(folder, "bf16")
    pipeline.pipe.text_encoder.float()
    run = run_of(pipeline)
    embeddings, noise = inputs_of(pipeline, run)
    latents = denoised(pipeline, run, embeddings, noise)
    assert latents.dtype == torch.bfloat16
    assert torch.isfinite(latents).all()


def test_variants_of_a_unet(folder: Path) -> None:
    pipeline = load(folder)
    run = run_of(pipeline)
    embeddings, noise = inputs_of(pipeline, run)
    plain = denoised(pipeline, run, embeddings, noise)
    fused = load(folder)
    axes.apply(fused, Variant(fuse_qkv=True), "cpu", steps=1)
    found = denoised(fused, run, embeddings, noise)
    assert torch.allclose(found, plain, atol=1e-4)
    damaged = load(folder)
    axes.apply(damaged, Variant(fault="block_skipped"), "cpu", steps=1)
    found = denoised(damaged, run, embeddings, noise)
    assert not torch.allclose(found, plain, atol=1e-3)
    cached = Variant(cache=Cache(kind="pab", interval=2))
    with pytest.raises(Unsupported):
        axes.apply(load(folder), cached, "cpu", steps=1)


def test_fp8_layers_of_a_unet(folder: Path) -> None:
    """GEGLU layers as a whole, key and value of the prompt in one: recipes/fast.yaml's linears."""
    pipeline = load(folder)
    run = run_of(pipeline)
    inputs = inputs_of(pipeline, run)
    plain = denoised(pipeline, run, *inputs, steps=1)
    wanted = Quantize(backend="qbench", scheme="fp8_dynamic_row")
    applied = axes.apply(pipeline, Variant(fuse_qkv=True, quantize=wanted), "cpu", steps=1)
    facts = applied.facts
    found = denoised(pipeline, run, *inputs, steps=1)
    unet = pipeline.denoiser
    kinds = [layer for layer in unet.modules() if isinstance(layer, Fp8FeedForward)]
    assert len(kinds) == len(pipeline.repeated_blocks())
    assert {layer.activation for layer in kinds} == {"geglu"}
    assert not any(isinstance(layer, torch.nn.Linear) for layer in unet.modules())
    assert 0 < facts["quantized_parameter_share"] < 1  # convolutions stay as they are
    assert 1e-4 < ((found - plain).norm() / plain.norm()).item() < 0.06


@pytest.mark.parametrize("fused", [False, True])
def test_a_kernel_computes_attention_over_space_and_no_other(folder: Path, fused: bool) -> None:
    pipeline = load(folder)
    run = run_of(pipeline)
    inputs = inputs_of(pipeline, run)
    plain = denoised(pipeline, run, *inputs)
    axes.apply(pipeline, Variant(fuse_qkv=fused), "cpu", steps=1)
    seen = set()

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.add(tuple(q.shape))
        turned = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*turned).transpose(1, 2)

    pipeline.set_attention(kernel)
    found = denoised(pipeline, run, *inputs)
    assert torch.allclose(found, plain, atol=1e-4)
    # Ten frames (five, guided) of 8x8 and 4x4 latents: the tokens of one frame, whatever the width.
    assert {(shape[0], shape[1]) for shape in seen} == {(10, 64), (10, 16)}


def test_compiled_in_parts_a_unet_makes_the_same_and_leaves_no_part_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine code is made of the first part of each kind; of the others the graph is enough."""
    whole, seen = torch.nn.Module.compile, set[type]()

    def compiled(part: torch.nn.Module, **options: Any) -> None:
        if type(part) in seen:
            options = {**options, "mode": None, "backend": "aot_eager"}
        seen.add(type(part))
        whole(part, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    pipeline = load(folder)
    run = run_of(pipeline)
    inputs = inputs_of(pipeline, run)
    plain = denoised(pipeline, run, *inputs)
    axes.apply(pipeline, Variant(compile=Compile()), "cpu", steps=1)
    found = denoised(pipeline, run, *inputs)
    assert torch.allclose(found, plain, atol=1e-4)
    held = {id(layer) for part in pipeline.compiled_parts() for layer in part.modules()}
    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    outside = [
        name
        for name, layer in pipeline.denoiser.named_modules()
        if isinstance(layer, norms) and id(layer) not in held
    ]
    assert outside == ["conv_norm_out"]


def test_work_of_a_unet_is_counted(folder: Path) -> None:
    pipeline = load(folder)
    run = run_of(pipeline)
    embeddings, _ = inputs_of(pipeline, run)
    assert embeddings.positive.shape == pipeline.embeddings_shape(run, 1)
    (inputs,) = pipeline.step_inputs(run)
    found = flops.count(pipeline.denoiser, [inputs], 4)
    written_out = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    counter = torch.utils.flop_counter.FlopCounterMode(display=False)
    with counter, written_out, torch.no_grad():
        pipeline.denoiser(**inputs)
    assert found.flop == pytest.approx(counter.get_total_flops())
    assert found.attention_flop > 0


def test_a_size_that_its_vae_cannot_make_is_refused_before_loading(folder: Path) -> None:
    with pytest.raises(InputError, match="not a multiple of 8; the nearest is 64"):
        specs.check(specs.find(str(folder)), Generation(height=62))


@pytest.mark.slow
def test_a_sweep_over_a_unet(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na cat a cat\n")
    words = [
        f"--model={folder}", f"--prompts={prompts}", f"--out={tmp_path / 'runs'}", "--device=cpu",
        "--set=generation.frames=5", "--set=generation.steps=3", "--set=prompts.count=2",
        "--set=measure.repeats=1", "--set=measure.warmup=0", "--set=measure.profile=false",
        "--set=measure.interleave=false", "--set=quality.metrics=[psnr, latent_error, flicker]",
    ]  # fmt: skip
    paths = [str(RECIPES / f"{name}.yaml") for name in ("int8",)]
    done = qbench("run", *paths, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {r.recipe.name: r for _, r in store.read_all(store.find([tmp_path]))[0]}
    assert {name: r.status for name, r in found.items()} == {"fp32": "ok", "int8": "ok"}
    assert 20 < found["int8"].quality["psnr"].value < 100
    assert found["int8"].facts["quantized_parameter_share"] > 0.05
    growth = found["int8"].error_growth
    assert growth is not None
    assert growth.forced[-1] > 0


def _recipe(folder: Path, tmp_path: Path, **fields: Any) -> Recipe:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na cat a cat\n")
    return Recipe.model_validate(
        {
            "name": "small",
            "model": str(folder),
            "generation": {"frames": 5, "steps": 3},
            "prompts": {"set": str(prompts)},
            "measure": {"repeats": 2, "warmup": 0, "profile": False},
            **fields,
        }
    )


def test_random_weights_of_a_unet_are_timed_without_a_download(
    folder: Path, tmp_path: Path
) -> None:
    run = lone_session(_recipe(folder, tmp_path, weights="random"), "cpu", tmp_path)
    timed = timing.time(run)
    assert len(timed.latency_s) == 2
    assert [len(steps) for steps in timed.step_s] == [3, 3]


def test_errors_by_step_of_a_scheduler_with_more_timesteps_than_steps(
    folder: Path, tmp_path: Path
) -> None:
    """PNDM has four timesteps in three steps. diffusers tells of the last three, as 1, 2 and 3."""
    from diffusers import PNDMScheduler

    model = tmp_path / "model"
    shutil.copytree(folder, model)
    PNDMScheduler(skip_prk_steps=True).save_pretrained(model / "scheduler")
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (model / "model_index.json").write_text(json.dumps(index))
    first = lone_session(_recipe(model, tmp_path, reference="small"), "cpu", tmp_path)
    scheduler = first.pipeline.pipe.scheduler
    scheduler.set_timesteps(3)
    assert len(scheduler.timesteps) == 4
    assert generate.error_by_step(first) is None
    other = _recipe(model, tmp_path, name="other", reference="small", variant={"dtype": "bf16"})
    second = lone_session(other, "cpu", tmp_path)
    second.job = second.job.model_copy(update={"reference": tmp_path})
    growth = generate.error_by_step(second)
    assert growth is not None
    assert len(growth.free) == len(growth.forced) == 3
    assert growth.free[0] == pytest.approx(growth.forced[0], rel=1e-3)
    assert growth.free[-1] > 0
