"""Runs of the real program with planted faults: each verdict from records alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, ROOT, qbench
from safetensors.torch import load_file

from qbench.optimizations import faults
from qbench.pipelines import known, specs
from qbench.quality.outputs import decoded
from qbench.recipe import files
from qbench.report import tables
from qbench.results import store
from qbench.results.ranking import Ranking, rankings
from qbench.run import generate, timing
from scripts.bench_overhead import lone_session

pytestmark = pytest.mark.slow
FEW = [
    "--set=generation.steps=4",
    "--set=prompts.count=12",
    "--set=measure.repeats=1",
    "--set=measure.warmup=0",
    "--set=measure.profile=false",
    "--set=quality.metrics=[psnr, clip_score, adherence, flicker, fvd_reference, kvd_reference, "
    "sharpness, contrast, colour, motion_amount, motion_direction, motion_rhythm]",
    "--set=quality.batch=12",
    "--set=measure.interleave=false",
    "--no-floors",
    "--device=cpu",
    "--quiet",
]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranking]:
    out = tmp_path_factory.mktemp("planted")
    names = ("channels-swapped", "last-frames-repeated", "norms-fp8")
    paths = [str(RECIPES / "faults" / f"{name}.yaml") for name in names]
    paths.append(str(RECIPES / "floor" / "seed.yaml"))
    done = qbench("run", *paths, *FEW, f"--out={out}")
    assert done.returncode == 1, done.stdout + done.stderr  # one of them is invalid
    found, unreadable = store.read_all(store.find([out]))
    assert not unreadable
    (ranking,) = rankings(found)
    return out, ranking


def test_each_fault_gets_the_verdict_that_it_deserves(planted: tuple[Path, Ranking]) -> None:
    ranking = planted[1]
    for record in ranking.records:
        if record.recipe.expects:
            found = ranking.judged[record.run]
            assert found.verdict == record.recipe.expects, (record.recipe.name, found)
    names = {r.recipe.name: ranking.judged[r.run] for r in ranking.records if r.reference}
    assert "standing still" in names["faults/last-frames-repeated"].because
    # No one figure sees everything: the colour fault has sharp, steady, connected frames.
    assert names["faults/channels-swapped"].alone["flicker"] == "indistinguishable"


def test_the_report_says_what_was_planted_and_what_was_found(
    planted: tuple[Path, Ranking], tmp_path: Path
) -> None:
    done = qbench("report", str(planted[0]), f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "report.md").read_text()
    table = text.partition("### Planted faults")[2].splitlines()
    row = next(line for line in table if line.startswith("| faults/channels-swapped"))
    assert row.split(" | ")[1:3] == ["broken", "broken"]
    assert "**broken**" in row  # some figure would have said so alone
    assert "wrong**" not in tables.confusion(planted[1])
    assert "~~faults/last-frames-repeated~~" in text  # invalid: struck through, and still judged
    assert (tmp_path / "error-by-step.png").stat().st_size > 10_000


def test_a_planted_fault_is_caught_where_the_verdict_is_not_the_deserved_one(
    planted: tuple[Path, Ranking],
) -> None:
    """The table marks a wrong verdict: one record is made to expect another."""
    ranking = planted[1]
    changed = tuple(
        r.model_copy(update={"recipe": r.recipe.model_copy(update={"expects": "broken"})})
        if r.recipe.name == "floor/seed"
        else r
        for r in ranking.records
    )
    table = tables.confusion(replace(ranking, records=changed))
    assert "| floor/seed | broken | **drift" in table


@pytest.mark.parametrize("same", [True, False])
def test_shards_are_judged_where_their_references_made_the_same_videos(
    planted: tuple[Path, Ranking], same: bool
) -> None:
    """A shard's variant was compared with the shard's own run of the reference."""
    records_here, folders = planted[1].records, planted[1].folders
    reference = next(r for r in records_here if r.recipe.is_reference)
    other = reference.model_copy(update={"run": "another", "started": reference.started + "x"})
    if not same:
        figure = reference.quality["clip_score"]
        assert figure.samples
        changed = figure.model_copy(
            update={"samples": [figure.samples[0] + 1, *figure.samples[1:]]}
        )
        quality = {**reference.quality, "clip_score": changed}
        other = other.model_copy(update={"quality": quality})
    found = [(folder / store.FILE, r) for folder, r in zip(folders, records_here, strict=True)]
    (ranking,) = rankings([*found, (folders[0] / "2" / store.FILE, other)])
    assert ranking.reference is not None
    # The latest of equal ones is shown; one that made other videos takes no verdict away.
    assert ranking.reference.run == ("another" if same else reference.run)
    assert set(ranking.judged) == set(planted[1].judged)


def test_error_by_step_tells_one_step_from_all_before_it(planted: tuple[Path, Ranking]) -> None:
    out, ranking = planted
    growth = {r.recipe.name: r.error_growth for r in ranking.records}
    norms, seed = growth["faults/norms-fp8"], growth["floor/seed"]
    assert growth["fp32"] is None
    assert norms is not None
    assert seed is not None
    assert len(norms.free) == len(norms.forced) == 4
    # The first step starts from the same noise either way; those after it have all before them.
    # The last one's own error is so large, with what it makes of the noise, that it hides that.
    assert norms.free[0] == pytest.approx(norms.forced[0], rel=1e-3)
    assert all(a > b > 0 for a, b in zip(norms.free[1:-1], norms.forced[1:-1], strict=True))
    # Other noise is far off on its own way, and as good as the reference from the same latents.
    assert seed.free[0] > 0.5
    assert max(seed.forced[1:]) < 1e-3
    kept = load_file(next(out.glob("*/fp32-*")) / "trajectory.safetensors")["latents"]
    assert kept.shape[:2] == (4, 2)


def test_power_plans_from_these_records(planted: tuple[Path, Ranking]) -> None:
    done = qbench("power", str(planted[0]), "--resolve=psnr=0.5")
    assert done.returncode == 0, done.stderr
    assert "prompts (sigma" in done.stdout
    assert "channels-swapped" not in done.stdout  # what is broken says nothing of a sound spread
    for words, reason in (
        (("--resolve=psn=1",), "did you mean 'psnr'"),
        (("--resolve=psnr=-1",), "difference above 0"),
        (("--alpha=2",), "not between 0 and 1"),
    ):
        done = qbench("power", str(planted[0]), *words)
        assert done.returncode == 2
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


def test_faults_do_what_their_names_say() -> None:
    pipeline = specs.load(known.KNOWN["tiny-cogvideox"], "fp32", "cpu")
    blocks = pipeline.repeated_blocks()
    before = blocks[4].ff.net[2].weight.clone()
    faults.apply(pipeline, "scale_doubled")
    assert torch.equal(blocks[4].ff.net[2].weight, 2 * before)
    video = torch.rand(1, 17, 3, 4, 4)
    pipeline.decode = lambda run, latents: video
    faults.apply(pipeline, "last_frames_repeated")
    frames = pipeline.decode(None, None)
    assert torch.equal(frames[:, :13], video[:, :13])
    assert all(torch.equal(frames[:, i], video[:, 12]) for i in range(13, 17))


def test_every_fault_of_the_schema_has_a_recipe_and_a_deserved_verdict() -> None:
    from typing import get_args

    from qbench.recipe import files, schema

    found = [files.load(path) for path in sorted((RECIPES / "faults").glob("*.yaml"))]
    assert {r.variant.fault for r in found} >= set(get_args(schema.Fault))
    assert all(r.expects for r in found)


def test_vbench_prompts_are_read_from_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name with that file, for the real one brings a hundred others along."""
    from qbench import prompts
    from qbench.errors import InputError

    with pytest.raises(InputError, match="pip install --no-deps vbench"):
        prompts.load("vbench")
    (tmp_path / "vbench").mkdir()
    (tmp_path / "vbench" / "__init__.py").write_text("raise ImportError('never imported')")
    entries = [
        {"prompt_en": "a stop sign", "dimension": ["temporal_flickering"]},
        {"prompt_en": "a person is clapping", "dimension": ["human_action", "overall"]},
        {"prompt_en": "a person is clapping", "dimension": ["temporal_flickering"]},
    ]
    (tmp_path / "vbench" / "VBench_full_info.json").write_text(json.dumps(entries))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert prompts.load("vbench").prompts == ("a stop sign", "a person is clapping")
    assert prompts.load("vbench/human_action").prompts == ("a person is clapping",)
    with pytest.raises(InputError, match="did you mean 'human_action'"):
        prompts.load("vbench/human_actions")


def test_published_prompt_sets_have_not_changed() -> None:
    """A set's name stands for its prompts: another text needs another name."""
    from qbench import prompts

    known = json.loads((ROOT / "tests" / "prompt-digests.json").read_text())
    assert {name: prompts.load(name).digest() for name in prompts.names()} == known


@pytest.mark.parametrize("compiled", [False, True])
@torch.compiler.set_stance("force_eager")
def test_a_compiler_meets_one_size_of_batch_and_the_videos_are_the_same(
    tmp_path: Path, compiled: bool
) -> None:
    """Of six videos one is timed and five come in batches of three; each size is compiled for.

    Those whose error is followed by step are no third size. What counts is with what the
    compiler would be called, so it is left out.
    """
    wanted = files.load(
        RECIPES / ("compile.yaml" if compiled else "bf16.yaml"),
        {
            "variant.dtype": "fp32",
            "reference": "null",
            "generation.steps": "2",
            "generation.frames": "9",
            "prompts.count": "6",
            "measure.repeats": "1",
            "measure.warmup": "0",
            "quality.batch": "3",
        },
    )
    sizes: list[int] = []
    run = lone_session(wanted, "cpu", tmp_path)
    plain = run.pipeline.denoise

    def denoise(generation: Any, embeddings: Any, latents: Any, *more: Any, **named: Any) -> Any:
        sizes.append(len(latents))
        return plain(generation, embeddings, latents, *more, **named)

    run.pipeline.denoise = denoise
    timing.time(run)
    generate.generate(run)
    assert generate.error_by_step(run) is None  # the reference's own are kept
    assert sizes == [1, 1, 3, *([3, 1, 1] if compiled else [2, 2])]
    _, latents = run.outputs.read(0, 2)
    followed = load_file(tmp_path / "trajectory.safetensors")["latents"]
    assert followed.shape[:2] == (2, 2)
    torch.testing.assert_close(followed[-1], latents.float(), rtol=0.02, atol=0.02)
    kept, _ = run.outputs.read(0, 6)
    assert len(kept) == 6
    for number in (0, 3, 4, 5):
        frames = decoded(run.video([number]).frames)
        others = [(frames[0] - one).abs().mean().item() for one in kept]
        assert others.pop(number) < 2e-3  # the VAE computes in BF16
        assert min(others) > 2e-2
