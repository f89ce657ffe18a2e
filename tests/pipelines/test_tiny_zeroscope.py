"""The bundled UNet is a plain diffusers pipeline that follows its prompts."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from qbench import world
from qbench.pipelines import known, specs
from qbench.pipelines.base import VideoPipeline
from qbench.quality.metrics import fidelity
from qbench.quality.metrics.probe import load_probe
from qbench.recipe.schema import Generation

MODEL = specs.find("tiny-zeroscope")


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return specs.load(MODEL, "fp32", "cpu")


def test_its_folder_keeps_to_its_size() -> None:
    files = (known.BUNDLED / "tiny-zeroscope").rglob("*")
    assert sum(p.stat().st_size for p in files if p.is_file()) <= 5.5e6


def test_loads_and_runs_with_plain_diffusers_and_none_of_our_code() -> None:
    code = (
        "import sys, torch\n"
        "from diffusers import TextToVideoSDPipeline\n"
        f"pipe = TextToVideoSDPipeline.from_pretrained({MODEL.source!r}, dtype=torch.float32)\n"
        "video = pipe('a large red star moves left on a navy background', guidance_scale=1.5,\n"
        "             num_inference_steps=2, num_frames=17, output_type='pt').frames\n"
        "assert tuple(video.shape) == (1, 17, 3, 64, 64), video.shape\n"
        "assert not any(name.startswith('qbench') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_vae_reconstructs_unseen_clips_at_35_db(pipeline: VideoPipeline) -> None:
    scenes = [scene for scene in world.scenes() if world.held_out(scene)][::120]
    clips = world.render_scenes(scenes, seed=77)
    with torch.no_grad():
        latents = pipeline.pipe.vae.float().encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mean
    run = pipeline.resolve(MODEL, Generation())
    scaled = latents.unflatten(0, clips.shape[:2]).transpose(1, 2)
    back = pipeline.decode(run, scaled * pipeline.pipe.vae.config.scaling_factor)
    assert fidelity.psnr(back, clips).mean() >= 35


def test_generations_follow_prompts_that_were_held_out(pipeline: VideoPipeline) -> None:
    scenes = [scene for scene in world.scenes() if world.held_out(scene)][::116]
    run = pipeline.resolve(MODEL, Generation(steps=8))
    assert (run.frames, run.height, run.width, run.text_tokens) == (17, 64, 64, 24)
    embeddings = pipeline.encode(run, [scene.caption() for scene in scenes])
    noise = torch.cat([pipeline.noise(run, seed) for seed in range(len(scenes))])
    latents = pipeline.denoise(
        run, embeddings, noise, lambda _: None, generators=pipeline.generators(range(len(noise)))
    )
    answers = load_probe(known.BUNDLED / "probe")(pipeline.decode(run, latents))
    truth = torch.tensor([scene.indices() for scene in scenes])
    right = [logits.argmax(1) == truth[:, i] for i, logits in enumerate(answers.values())]
    assert torch.stack(right).float().mean() >= 0.9


def test_prompts_are_padded_to_the_tokens_that_the_work_is_counted_for(
    pipeline: VideoPipeline,
) -> None:
    run = pipeline.resolve(MODEL, Generation())
    made = pipeline.encode(run, ["a red star", "a blue ring grows"])
    assert made.negative is not None
    shapes = {tuple(each.shape) for each in (made.positive, made.negative)}
    assert shapes == {pipeline.embeddings_shape(run, 2)}


def test_every_width_is_a_multiple_of_64_so_that_groups_fit(pipeline: VideoPipeline) -> None:
    widths = {
        layer.in_features
        for layer in pipeline.denoiser.modules()
        if isinstance(layer, torch.nn.Linear)
    }
    assert all(width % 64 == 0 for width in widths)
