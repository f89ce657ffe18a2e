"""The bundled model is a plain diffusers pipeline that follows its prompts."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qbench import prompts, world
from qbench.errors import InputError
from qbench.pipelines import base, families, known, schedulers, specs
from qbench.pipelines.base import VideoPipeline
from qbench.pipelines.sizes import Grid
from qbench.quality.metrics import fidelity
from qbench.quality.metrics.probe import load_probe
from qbench.recipe import schema

TINY = known.BUNDLED / "tiny-cogvideox"


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")


def test_bundled_folders_keep_to_their_size() -> None:
    def megabytes(folder: Path) -> float:
        return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6

    assert megabytes(TINY) <= 30
    assert megabytes(known.BUNDLED) <= 39


def test_loads_and_runs_with_plain_diffusers_and_none_of_our_code() -> None:
    code = (
        "import sys, torch\n"
        "from diffusers import CogVideoXPipeline\n"
        f"pipe = CogVideoXPipeline.from_pretrained({str(TINY)!r}, dtype=torch.float32)\n"
        "video = pipe('a large red star moves left on a navy background', guidance_scale=1.5,\n"
        "             num_inference_steps=2, max_sequence_length=24, output_type='pt').frames\n"
        "assert tuple(video.shape) == (1, 17, 3, 64, 64), video.shape\n"
        "assert not any(name.startswith('qbench') for name in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_scheduler_is_cogvideoxs(pipeline: VideoPipeline) -> None:
    config = pipeline.pipe.scheduler.config
    assert config.prediction_type == "v_prediction"
    assert config.rescale_betas_zero_snr
    assert config.timestep_spacing == "trailing"


def test_vae_reconstructs_unseen_clips_at_36_db(pipeline: VideoPipeline) -> None:
    scenes = [scene for scene in world.scenes() if world.held_out(scene)][30::60]
    clips = world.render_scenes(scenes, seed=77)
    vae = pipeline.pipe.vae.float()
    with torch.no_grad():
        latents = vae.encode(clips.transpose(1, 2) * 2 - 1).latent_dist.mean
        back = base.frames_of(vae.decode(latents).sample)
    assert fidelity.psnr(back, clips).mean() >= 36


def test_generations_follow_prompts_held_out_ones_too(pipeline: VideoPipeline) -> None:
    scenes = [scene for scene in world.scenes() if world.held_out(scene)][::58]
    run = pipeline.resolve(specs.find("tiny-cogvideox"), schema.Generation())
    embeddings = pipeline.encode(run, [scene.caption() for scene in scenes])
    noise = torch.cat([pipeline.noise(run, seed) for seed in range(len(scenes))])
    latents = pipeline.denoise(
        run, embeddings, noise, lambda _: None, generators=pipeline.generators(range(len(noise)))
    )
    answers = load_probe(known.BUNDLED / "probe")(pipeline.decode(run, latents))
    truth = torch.tensor([scene.indices() for scene in scenes])
    for i, (name, logits) in enumerate(answers.items()):
        assert (logits.argmax(1) == truth[:, i]).float().mean() >= 0.85, name


def test_our_stages_give_the_pipelines_own_video(pipeline: VideoPipeline) -> None:
    """Stage by stage equals one call of the pipeline with the same noise: what users run."""
    run = pipeline.resolve(specs.find("tiny-cogvideox"), schema.Generation(steps=3, guidance=2.0))
    text = ["a small blue ring grows on a gray background"]
    pipeline.pipe.text_encoder.float()  # plain calls want one dtype
    noise = pipeline.noise(run, 5)
    embeddings = pipeline.encode(run, text)
    ours = pipeline.denoise(
        run, embeddings, noise, lambda _: None, generators=pipeline.generators(range(len(noise)))
    )
    theirs = pipeline.pipe(
        prompt=text,
        latents=noise.clone(),
        num_inference_steps=3,
        guidance_scale=2.0,
        max_sequence_length=24,
        output_type="latent",
    ).frames
    assert fidelity.latent_error(ours, theirs).item() < 1e-5


def test_embeddings_have_the_shape_that_work_is_counted_for(pipeline: VideoPipeline) -> None:
    run = pipeline.resolve(specs.find("tiny-cogvideox"), schema.Generation())
    made = pipeline.encode(run, ["a red star", "a blue ring grows"])
    shapes = {tuple(each.shape) for each in (made.positive, made.negative)}
    assert shapes == {pipeline.embeddings_shape(run, 2)}


def test_noise_depends_on_the_seed_alone(pipeline: VideoPipeline) -> None:
    run = pipeline.resolve(specs.find("tiny-cogvideox"), schema.Generation())
    a, b, c = (pipeline.noise(run, seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_numbers_of_steps_that_leave_noise_in_the_video_are_noted(pipeline: VideoPipeline) -> None:
    """Against a denoiser that is never wrong: what is not the video in the end is leftover."""
    scheduler = type(pipeline.pipe.scheduler).from_config(pipeline.pipe.scheduler.config)
    video, start = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0))
    for steps in (10, 15, 20, 25, 30, 50):
        scheduler.set_timesteps(steps)
        latents = start
        for t in scheduler.timesteps:
            signal = scheduler.alphas_cumprod[t] ** 0.5
            spread = (1 - signal**2) ** 0.5
            noise = (latents - signal * video) / spread
            latents = scheduler.step(signal * noise - spread * video, t, latents).prev_sample
        left = float((latents - video).std())
        note = schedulers.uneven(pipeline.pipe, steps)
        assert (note is not None) == (left > 1e-3)
        assert note is None or note.endswith("divides them is 20")


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ({"frames": 12}, "for 12 this model makes 9; the nearest to ask for is 9"),
        ({"frames": 13}, "for 13 this model makes 16; the nearest to ask for is 17"),
        ({"height": 70}, "not a multiple of 16"),
        (
            {"frames": 12, "height": 70, "width": 90},
            r"^generation.frames: .* is 9\ngeneration.height: .* is 64\ngeneration.width: "
            r"90 is not a multiple of 16; the nearest is 96$",
        ),
    ],
)
def test_impossible_shapes_are_refused(pipeline: VideoPipeline, wanted: dict, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        pipeline.resolve(specs.find("tiny-cogvideox"), schema.Generation(**wanted))


def test_a_model_of_one_size_names_that_one_and_no_other_that_it_cannot_make() -> None:
    grid = Grid((49, 480, 720), 16, lambda frames: frames // 8 * 8 + 1, fixed=True)
    with pytest.raises(InputError, match=r"position table is for 49x480x720 .* alone"):
        grid.check(schema.Generation(height=490))
    grid.check(schema.Generation(frames=49, width=720))


def test_sizes_of_a_known_model_are_refused_before_it_comes_from_the_hub() -> None:
    with pytest.raises(InputError, match="height: 70 is not a multiple of 16"):
        specs.check(specs.find("cogvideox-2b"), schema.Generation(height=70))
    specs.check(known.Model("own", "somebody/own"), schema.Generation(height=70))  # who knows


def test_a_size_that_was_not_learned_is_told_with_the_nearest_that_was() -> None:
    model = replace(specs.find("tiny-cogvideox"), trained=((17, 64, 64), (49, 256, 256)))
    assert model.unlearned(49, 256, 256) is None
    assert specs.find("cogvideox-2b").unlearned(9, 64, 64) is None  # nobody said what it learned
    told = model.unlearned(33, 192, 192)
    assert told
    assert told.endswith("nearest that it was is 49x256x256 (others: 17x64x64)")


def _position(embed: torch.nn.Module, at: tuple[int, int, int]) -> torch.Tensor:
    """CogVideoX's embedding of one place (frame, row, column of patches), by its formula.

    A quarter of the channels for time, three eighths for columns, three eighths for rows, each the
    sines, then the cosines of place / scale / 10000^(i / n), i < n of n frequencies.
    """

    def waves(width: int, place: float) -> torch.Tensor:
        n = width // 2
        turn = place / 10000 ** (torch.arange(n, dtype=torch.float64) / n)
        return torch.cat([turn.sin(), turn.cos()])

    width, spatial = embed.embed_dim, embed.spatial_interpolation_scale
    frame, row, column = at
    parts = [waves(width // 4, frame / embed.temporal_interpolation_scale)]
    parts += [waves(3 * width // 8, place / spatial) for place in (column, row)]
    return torch.cat(parts).float()


@pytest.mark.parametrize("known", ["bundled", "cogvideox-2b"])
def test_positions_at_another_size_are_cogvideox_2bs_own(
    pipeline: VideoPipeline, known: str
) -> None:
    """What the bundled weights rest on: a place is coded alike whatever the size around it."""
    from diffusers.models.embeddings import CogVideoXPatchEmbed

    plain = {"use_learned_positional_embeddings": False}
    embed = pipeline.denoiser.patch_embed if known == "bundled" else CogVideoXPatchEmbed(**plain)
    text, frames, side = embed.max_text_seq_length, 13, 32
    blank = torch.zeros(1, frames, embed.proj.in_channels, side, 2 * side)
    words = torch.zeros(1, text, embed.text_proj.in_features)
    with torch.no_grad():
        places = embed(words, blank)[0] - torch.cat(
            [embed.text_proj(words)[0], embed.proj.bias.expand(frames * side * side // 2, -1)]
        )
    assert not places[:text].any()
    grid = places[text:].unflatten(0, (frames, side // 2, side))
    for at in ((0, 0, 0), (3, 1, 2), (12, 15, 31)):
        torch.testing.assert_close(grid[at], _position(embed, at), rtol=0, atol=1e-5)
    assert "pos_embedding" not in embed.state_dict()  # so weights hold for every size


def test_unknown_models_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'cogvideox-2b'"):
        specs.find("cogvideo-2b")
    with pytest.raises(InputError, match="not a diffusers pipeline"):
        specs.find(str(tmp_path))
    assert specs.find("zai-org/CogVideoX-2b").source == "zai-org/CogVideoX-2b"


def test_digest_sees_one_changed_weight_in_a_file_of_equal_size(tmp_path: Path) -> None:
    import shutil

    for name in ("a", "b", "c"):
        shutil.copytree(TINY, tmp_path / name)
    weights = tmp_path / "c" / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    a, b, c = (specs.find(str(tmp_path / name)).digest() for name in ("a", "b", "c"))
    assert a == b
    assert a != c


def test_pipeline_of_another_family_is_refused_with_its_name_and_the_guide() -> None:
    class MochiPipeline:
        pass

    with pytest.raises(InputError, match=r"MochiPipeline.*CogVideoXPipeline.*extending/pipeline"):
        families.wrap(MochiPipeline())  # type: ignore[arg-type]


def test_a_family_of_an_installed_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qbench.pipelines]\nMyPipeline = my_family:Mine\n")
    (tmp_path / "my_family.py").write_text(
        "from qbench.pipelines.wan import Wan\n"
        "class Mine(Wan):\n    pipeline_class = 'MyPipeline'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert families.of_class("MyPipeline").__module__ == "my_family"
    with pytest.raises(InputError, match="MyPipeline"):
        families.of_class("YourPipeline")


def test_prompt_sets_and_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# a comment\n\nfirst prompt\nsecond prompt\n")
    assert prompts.load(str(path)).prompts == ("first prompt", "second prompt")
    assert prompts.load(str(path), 1).prompts == ("first prompt",)
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="no prompt"):
        prompts.load(str(path))
    assert len(prompts.load("scenes-v1").prompts) >= 30
