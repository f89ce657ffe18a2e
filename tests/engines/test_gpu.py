"""Engines on a GPU, of the bundled model: exported, then checked as on the machine of another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from exporting import exported

from qbench.engines import evidence, tensorrt_plan, verify

Shaped = tuple[tuple[int, ...], int]  # shape, device pointer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def _needs(*distributions: str) -> None:
    found = {one.metadata["Name"] for one in metadata.distributions()}
    if not found.intersection(distributions):
        pytest.skip(f"{distributions[0]} is not installed")


def test_an_fp8_checkpoint_reloads_bit_for_bit(tmp_path: Path) -> None:
    made = exported("fp8-dynamic", tmp_path / "engine")
    assert made.manifest.variant.max_abs == 0
    assert verify.verify(tmp_path / "engine").exit_code == 0


def test_onnx_runtime_computes_in_half_precision(tmp_path: Path) -> None:
    _needs("onnxruntime-gpu")
    made = exported("engine/onnx-fp16", tmp_path / "engine")
    assert made.manifest.target.device == "cuda"
    assert verify.verify(tmp_path / "engine").exit_code == 0


def test_a_plan_computes_the_variant_and_so_does_the_program_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _needs("tensorrt", "tensorrt-rtx-cu13-bindings")
    made = exported("engine/tensorrt-bf16", tmp_path / "engine")
    assert made.manifest.target.bound.compute_capability
    assert verify.verify(tmp_path / "engine").exit_code == 0
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "engine")])
    call = evidence.load(tmp_path / "engine", "cuda")[0]
    page: dict[str, Callable[[dict[str, Shaped], int, int], None]] = {}
    exec(_example().replace("tensorrt_rtx_bindings", tensorrt_plan.library().__name__), page)
    held = {name: value.contiguous() for name, value in call.inputs.items()}
    found = torch.empty_like(held["hidden_states"])
    given = {name: (tuple(value.shape), value.data_ptr()) for name, value in held.items()}
    page["denoise"](given, found.data_ptr(), torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    assert evidence.accuracy([found], [call.variant]).relative_l2 < 0.02


def _example() -> str:
    """The program of the page on TensorRT."""
    page = Path(__file__).parent.parent.parent / "docs" / "deploy" / "tensorrt.md"
    return page.read_text().split("```python\n")[1].split("```")[0]
