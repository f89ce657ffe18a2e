"""Steps as the unit, random weights, and a reference that takes turns."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import time
from pathlib import Path

import pytest
from conftest import RECIPES, qbench

from qbench.quality.ratios import paired_speed_up, speed_up
from qbench.results import speed, store
from qbench.results.record import Record
from qbench.run.job import Job
from qbench.run.reference_server import ReferenceServer

pytestmark = pytest.mark.slow
STEPS = ["--set=measure.unit=step", "--set=measure.repeats=4", "--set=measure.interleave=true"]


def _records(out: Path) -> dict[str, Record]:
    good, bad = store.read_all(store.find([out]))
    assert not bad
    return {record.recipe.name: record for _, record in good}


@pytest.fixture(scope="module")
def interleaved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steps")
    words = [str(RECIPES / "bf16.yaml"), *STEPS, "--set=weights=random", "--device=cpu"]
    done = qbench("run", *words, f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaked" not in done.stderr  # a semaphore, by the reference's process as it is ended
    return out


def test_every_timed_step_has_its_turn_of_the_reference(interleaved: Path) -> None:
    found = _records(interleaved)
    bf16, fp32 = found["bf16"], found["fp32"]
    assert len(bf16.paired_reference_s) == len(bf16.step_host_s) == len(bf16.step_s[0]) == 4
    assert bf16.paired_speed_up is not None
    ratios = [a / b for a, b in zip(bf16.paired_reference_s, bf16.step_host_s, strict=True)]
    assert min(ratios) <= bf16.paired_speed_up.value <= max(ratios)
    assert not fp32.paired_reference_s
    assert bf16.stages["denoise"].seconds == bf16.step_host_s
    assert bf16.interleaved == "pairs"


def test_pairs_of_steps_of_two_kinds_are_no_speed_up(interleaved: Path) -> None:
    """Half of them skipped, the median of the ratios would be that of one kind or the other."""
    bf16 = _records(interleaved)["bf16"]
    assert speed.timing(bf16, None).speed_up is not None
    cached = bf16.model_dump(mode="json")
    cached["recipe"]["variant"]["cache"] = {"kind": "taylorseer", "interval": 2}
    read = store.parse(json.dumps(cached).encode(), Path("x"))
    assert read.paired_reference_s == bf16.paired_reference_s
    assert speed.timing(read, None).speed_up is None


def test_random_weights_give_no_quality_and_say_why(interleaved: Path) -> None:
    for record in _records(interleaved).values():
        assert record.status == "ok"
        assert not record.quality
        assert any("weights: random" in note for note in record.notes)
        assert record.work is not None
        assert record.mfu() is not None


def test_a_report_of_steps_ranks_them(interleaved: Path, tmp_path: Path) -> None:
    done = qbench("report", str(interleaved), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    line = next(x for x in (tmp_path / "report.md").read_text().splitlines() if "| bf16" in x)
    assert re.match(r"\| bf16 \| [\d.]+ m?s \| [\d.]+ m?s \| .*x \[", line), line
    assert (tmp_path / "step-by-work.png").is_file()


def test_interleaved_videos_pair_by_number(tmp_path: Path) -> None:
    words = ["--set=measure.interleave=true", "--set=measure.repeats=3", "--set=measure.warmup=0"]
    words += ["--set=generation.steps=2", "--set=prompts.count=2", "--device=cpu"]
    done = qbench("run", str(RECIPES / "bf16.yaml"), *words, f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = _records(tmp_path)["bf16"]
    assert len(record.paired_reference_s) == len(record.latency_s) == 3
    assert "psnr" in record.quality


def test_a_reference_that_cannot_run_gives_no_turn(interleaved: Path, tmp_path: Path) -> None:
    reference = _records(interleaved)["fp32"]
    broken = reference.model_copy(
        update={"recipe": reference.recipe.model_copy(update={"model": "/nowhere"})}
    )
    server = ReferenceServer(Job(draft=broken, folder=tmp_path, prompts=("a red star",)))
    assert math.isnan(server.turn(0, lambda: time.monotonic() + 120))
    assert math.isnan(server.turn(0, lambda: time.monotonic() + 120))
    assert server.failure is not None
    assert "/nowhere" in server.failure.reason
    server.close()


def test_a_reference_killed_between_turns_ends_them_and_leaves_no_folder(
    interleaved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    reference = _records(interleaved)["fp32"]
    server = ReferenceServer(Job(draft=reference, folder=tmp_path, prompts=("a red star",)))
    before = set(multiprocessing.active_children())
    soon = time.monotonic() + 240
    assert server.turn(0, lambda: soon) > 0
    (process,) = set(multiprocessing.active_children()) - before
    assert server.turn(1, lambda: soon) > 0
    process.kill()
    assert math.isnan(server.turn(2, lambda: soon))
    assert math.isnan(server.turn(3, lambda: soon))
    assert server.failure is not None
    assert "its process died" in server.failure.reason
    assert not process.is_alive()
    assert not list(tmp_path.glob("qbench-reference-*"))


def test_pairs_see_through_a_drift_that_hides_the_difference() -> None:
    """A machine that slows down threefold, and a variant that is 1.05 times as fast throughout."""
    drift = [1 + 2 * i / 19 for i in range(20)]
    reference, variant = [1.05 * x for x in drift], drift
    paired = paired_speed_up(reference, variant)
    assert paired.value == pytest.approx(1.05)
    assert paired.clear
    assert not speed_up(reference, variant).clear
    with pytest.raises(ValueError, match="equal lengths"):
        paired_speed_up([1.0], [1.0, 2.0])


def test_random_weights_of_an_unknown_size_are_refused(tmp_path: Path) -> None:
    words = ["--model=someone/CogVideoX-9b", "--set=weights=random", f"--out={tmp_path}"]
    done = qbench("run", str(RECIPES / "fp32.yaml"), *words)
    assert done.returncode == 1
    assert "the size of someone/CogVideoX-9b is not known" in done.stdout.replace("\n", " ")


def test_a_simulated_small_card_needs_a_card(tmp_path: Path) -> None:
    words = ["--set=measure.memory_limit_gib=8", "--device=cpu", f"--out={tmp_path}"]
    done = qbench("run", str(RECIPES / "fp32.yaml"), *words)
    assert "limits a GPU's memory, and there is none" in done.stdout


def test_a_noise_floor_keeps_the_videos_before_the_timed_ones(tmp_path: Path) -> None:
    """The reference itself under another name: its videos are those that the reference times."""
    (tmp_path / "again.yaml").write_text(
        "extends: fp32.yaml\nreference: fp32\nnoise_floor: true\nvariant: {dtype: fp32}\n"
    )
    (tmp_path / "fp32.yaml").write_text(
        "model: tiny-cogvideox\nreference: fp32\ngeneration: {steps: 2}\nprompts: {count: 4}\n"
        "measure: {repeats: 3, warmup: 1, interleave: false}\nquality: {trajectories: 2}\n"
        "variant: {dtype: fp32}\n"
    )
    done = qbench("run", str(tmp_path), "--device=cpu", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = _records(tmp_path / "out")
    again, fp32 = found["again"], found["fp32"]
    assert (len(again.latency_s), len(fp32.latency_s)) == (1, 3)
    assert again.outputs_sha256 == fp32.outputs_sha256 != ""
    assert again.videos == 4
