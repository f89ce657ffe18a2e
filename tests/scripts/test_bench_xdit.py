"""xDiT beside qbench: what ranks' figures add up to, and that a wrong attention would be seen."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import bench_xdit

HERE = Path(__file__).parent
SIZE = {"frames": 9, "height": 64, "width": 96, "layers": 2, "heads": 4}


def _rows(out: Path, *words: str, path: str = "") -> dict[str, dict[str, Any]]:
    words = tuple(f"--{name}={value}" for name, value in SIZE.items()) + words
    command = [sys.executable, "-m", "scripts.bench_xdit", f"--out={out}", "--device=cpu"]
    ran = subprocess.run(
        [*command, "--steps=2", "--warmup=1", *words],
        env=os.environ | {"PYTHONPATH": path},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return {row["name"]: row for row in json.loads(out.read_text())["rows"]}


@pytest.mark.parametrize("dim", [0, -2])
def test_ranks_parts_have_the_error_of_the_whole(dim: int) -> None:
    wanted = torch.randn(2, 3, 16, 8, 12)
    off = torch.randn_like(wanted)
    parts = (wanted + off).chunk(2, dim)
    found = {
        rank: {
            "seconds": [1.0 + rank, 3.0 - rank],
            "denoiser": bench_xdit.distance(x, wanted, rank),
        }
        for rank, x in enumerate(parts)
    }
    row = bench_xdit.combined(found)
    assert row["denoiser_relative_error"] == pytest.approx(float(off.norm() / wanted.norm()))
    assert row["seconds"] == [2.0, 3.0]  # each step's slowest rank
    assert row["step_s"] == 2.5
    swapped = dict(enumerate(parts[::-1]))
    squares = [bench_xdit.distance(x, wanted, rank) for rank, x in swapped.items()]
    assert sum(off for off, _ in squares) > 0.9 * sum(of for _, of in squares)


def test_half_of_attention_missing_is_seen_only_where_attention_matters() -> None:
    from qbench.optimizations.parallel.partials import plain
    from qbench.pipelines import families

    def half(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys = k.shape[1] // 2
        return plain(q, k[:, :keys], v[:, :keys])

    args = argparse.Namespace(**SIZE, device="cpu")
    pipe, call = bench_xdit.pipeline(args)
    video = families.wrap(pipe)
    before = {name: x.clone() for name, x in pipe.transformer.state_dict().items()}

    def error() -> float:
        video.set_attention(plain)
        right = bench_xdit.first_step(pipe, call)["denoiser"]
        video.set_attention(half)
        wrong = bench_xdit.first_step(pipe, call)["denoiser"]
        off, of = bench_xdit.distance(wrong, right, 0)
        return (off / of) ** 0.5

    with torch.no_grad():
        as_before = bench_xdit.louder(pipe.transformer)
        loud = error()
        as_before()
    assert loud > 0.02
    assert error() < loud / 4
    assert all(torch.equal(x, before[n]) for n, x in pipe.transformer.state_dict().items())


@pytest.mark.slow
def test_a_row_that_cannot_run_is_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    rows = _rows(tmp_path / "x.json", "--only", "diffusers", "xfuser-ring", "qbench-cfg")
    assert rows["xfuser-ring"]["reason"].startswith(("ModuleNotFoundError: ", "RuntimeError: "))
    assert len(rows["diffusers"]["seconds"]) == len(rows["qbench-cfg"]["seconds"]) == 2
    # Some CPUs round a batch of one otherwise than one of two; a wrong one is off by over 0.02.
    assert rows["qbench-cfg"]["denoiser_relative_error"] < 0.01
    late = _rows(tmp_path / "y.json", "--only", "diffusers", "--limit=0")
    assert late["diffusers"]["reason"] == "not begun after 0 s"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("xfuser"), reason="xfuser is not installed")
def test_xfuser_computes_what_one_process_does(tmp_path: Path) -> None:
    names = ["xfuser-cfg", "xfuser-ulysses", "xfuser-ring"]
    path = os.pathsep.join([str(HERE / "xfuser_on_cpu"), os.environ.get("PYTHONPATH", "")])
    words = ["--attention=sdpa_flash", "--only", "diffusers", *names]
    rows = _rows(tmp_path / "x.json", *words, path=path)
    for name in names:
        assert rows[name]["denoiser_relative_error"] < 0.01, rows[name]
        assert rows[name]["latents_relative_error"] < 0.03
