"""Engines on a GPU, of the bundled model: exported, then checked as on the machine of another."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch
from exporting import exported

from qbench.engines import verify

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


def test_a_plan_computes_the_variant(tmp_path: Path) -> None:
    _needs("tensorrt", "tensorrt-rtx-cu13-bindings")
    made = exported("engine/tensorrt-bf16", tmp_path / "engine")
    assert made.manifest.target.bound.compute_capability
    assert verify.verify(tmp_path / "engine").exit_code == 0
