"""Sweeps that are killed, hung up, repeated, run at once or out of disk lose nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import RECIPES, ROOT, SMALL, qbench
from test_sweep import _record, _runner, _start

pytestmark = pytest.mark.slow
FP32 = str(RECIPES / "fp32.yaml")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with one complete run of the reference."""
    out = tmp_path_factory.mktemp("complete")
    done = qbench("run", FP32, *SMALL, "--device=cpu", f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def _gone(pid: int) -> bool:
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def _start_anew(out: Path, *words: str) -> subprocess.Popen[str]:
    """The same with nothing imported ahead, as a user starts it."""
    command = [sys.executable, "-m", "qbench", "run", *words, "--device=cpu", f"--out={out}"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a terminal starts it: a suite in the background would hand on that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("signals", [[signal.SIGHUP], [signal.SIGINT, signal.SIGINT]])
def test_hung_up_or_impatiently_stopped_sweep_leaves_interrupted_and_no_process(
    signals: list[signal.Signals], tmp_path: Path
) -> None:
    process = _start(tmp_path, FP32, *SMALL)
    runner = _runner(process.pid)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert _record(tmp_path, "fp32").status == "interrupted"
    assert _gone(runner)


def test_run_ends_with_a_killed_sweep_and_the_next_one_clears_up(tmp_path: Path) -> None:
    sockets = "qbench-{}-*"
    process = _start_anew(tmp_path, FP32, *SMALL)
    runner = _runner(process.pid)
    process.kill()
    process.communicate(timeout=60)
    assert _gone(runner)
    record = _record(tmp_path, "fp32")
    assert record.status in ("interrupted", "running")  # killed before its process had begun
    done = qbench("run", FP32, *SMALL, "--device=cpu", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _record(tmp_path, "fp32").status == "ok"
    assert not list(Path(os.environ["TMPDIR"]).glob(sockets.format(process.pid)))


def test_fresh_run_that_is_stopped_leaves_what_was_complete(complete: Path) -> None:
    before = _record(complete, "fp32")
    process = _start(complete, FP32, *SMALL, "--fresh")
    _runner(process.pid)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert _record(complete, "fp32") == before
    assert len(list(complete.rglob("record.json"))) == 1


def test_fresh_run_replaces_and_two_sweeps_at_once_wait_for_each_other(complete: Path) -> None:
    before = _record(complete, "fp32")
    fresh = _start(complete, FP32, *SMALL, "--fresh")
    _runner(fresh.pid)
    second = qbench("run", FP32, *SMALL, "--device=cpu", f"--out={complete}")
    out, err = fresh.communicate(timeout=120)
    assert fresh.returncode == 0, out + err
    assert second.returncode == 0, second.stdout + second.stderr
    assert "complete already" in second.stdout
    after = _record(complete, "fp32")
    assert after.run != before.run
    assert after.outputs_sha256 == before.outputs_sha256
    assert len(list(complete.rglob("record.json"))) == 1


def test_labels_of_a_complete_run_follow_the_recipe_without_running_it(complete: Path) -> None:
    before = _record(complete, "fp32")
    words = [*SMALL, "--device=cpu", "--set=about=changed", f"--out={complete}"]
    done = qbench("run", FP32, *words)
    assert "complete already" in done.stdout
    after = _record(complete, "fp32")
    assert (after.recipe.about, after.run) == ("changed", before.run)


def test_full_disk_is_one_line_and_earlier_records_stay(complete: Path) -> None:
    """Files may have 1 KiB, so the record of another run cannot be written."""
    words = [str(RECIPES / "bf16.yaml"), *SMALL, "--device=cpu", f"--out={complete}"]
    done = qbench("run", *words, limits={"RLIMIT_FSIZE": 2**10})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the record cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert _record(complete, "fp32").status == "ok"


def test_raw_videos_that_the_disk_cannot_take_are_refused_before_they_are_made(
    tmp_path: Path,
) -> None:
    words = [FP32, *SMALL, "--set=prompts.count=256", "--device=cpu"]
    words += ["--set=generation.height=8192", "--set=generation.width=8192"]
    done = qbench("run", *words, f"--out={tmp_path}")
    assert done.returncode == 1
    record = _record(tmp_path, "fp32")
    assert record.status == "failed"
    assert "raw videos of 17x8192x8192 take" in record.reason


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "statistics.py").write_text("raise SystemExit('mine')\n")
    words = [FP32, "--set=measure.unit=step", "--set=measure.repeats=1", "--set=measure.warmup=0"]
    command = [sys.executable, "-m", "qbench", "run", *words, "--device=cpu", "--out=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _record(tmp_path / "out", "fp32").status == "ok"


def test_engine_runs_to_success(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")  # the reference is there already
    words = [str(RECIPES / "onnx.yaml"), *SMALL]
    done = qbench("run", *words, "--device=cpu", f"--out={out}", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    record = _record(out, "onnx")
    assert record.status == "ok"
    assert record.facts["parity_relative_error"] < 1e-3
    assert record.quality["psnr"].value > 60


def test_share_of_one_step_is_skipped_for_it_is_all_of_them(tmp_path: Path) -> None:
    words = [str(RECIPES / "cache" / "half-steps.yaml"), *SMALL, "--set=generation.steps=1"]
    qbench("run", *words, "--device=cpu", f"--out={tmp_path}")  # one step makes no sound reference
    record = _record(tmp_path, "cache-half-steps")
    assert record.status == "skipped"
    assert "no fewer of them" in record.reason


def test_reference_of_other_settings_is_not_compared_with(tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "base.yaml").write_text("reference: whole\n")
    (recipes / "whole.yaml").write_text("extends: base.yaml\ngeneration: {steps: 2}\n")
    (recipes / "part.yaml").write_text(
        "extends: base.yaml\ngeneration: {steps: 3}\nvariant: {dtype: bf16}\n"
    )
    words = ["--set=prompts.count=2", "--set=measure.repeats=1", "--set=quality.metrics=[psnr]"]
    done = qbench("run", str(recipes / "part.yaml"), *words, "--device=cpu", f"--out={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    record = _record(tmp_path, "part")
    assert record.reference is None
    assert not record.paired_reference_s
    assert any("differs in generation.steps" in note for note in record.notes)
