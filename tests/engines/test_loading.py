"""An engine of another machine, and code that nobody vouched for, are refused before loading."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from qbench.engines import loading, manifest
from qbench.engines.manifest import Bound, Description, Elsewhere, Target, Wrong
from qbench.recipe.schema import Recipe

HERE = Target(device="cpu", machine=platform.machine())


def _engine(target: Target = HERE, form: manifest.Format = "aoti") -> Description:
    return Description(
        format=form,
        created="2026-01-01T00:00:00+00:00",
        recipe=Recipe(name="int8"),
        recipe_fingerprint="0",
        base_model=manifest.BaseModelFacts(
            name="m", source="m", pipeline="P", denoiser="D", part="transformer",
            weights="pretrained", digest="0",
        ),
        dtype="float32", groups={}, inputs=[], outputs=[], layers={}, versions={}, load=[],
        target=target,
    )  # fmt: skip


def _bound(**to: object) -> Target:
    return HERE.model_copy(update={"bound": Bound.model_validate(to)})


def test_an_engine_of_this_machine_is_taken() -> None:
    isa = " ".join(sorted(loading.cpu_isa()))
    exactly = {"torch": torch.__version__.partition("+")[0]}
    loading.check_machine(_engine(_bound(cpu_isa=isa, exactly=exactly)))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (HERE.model_copy(update={"machine": "sparc"}), "built for sparc"),
        (_bound(cpu_isa="AVX1024 VNNI2"), "a CPU with AVX1024, VNNI2"),
        (_bound(exactly={"torch": "1.0.0"}), "only torch 1.0.0 loads it"),
        (_bound(exactly={"tensorrt-9": "9.9"}), "only tensorrt-9 9.9 .*not installed"),
    ],
)
def test_an_engine_of_another_machine_is_refused(target: Target, said: str) -> None:
    with pytest.raises(Elsewhere, match=said):
        loading.check_machine(_engine(target))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_engine_for_a_gpu_is_refused_without_one() -> None:
    target = Target(
        device="cuda", machine=platform.machine(), bound=Bound(compute_capability="9.0")
    )
    with pytest.raises(Elsewhere, match="NVIDIA GPU, and there is none"):
        loading.check_machine(_engine(target))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_an_engine_for_another_gpu_is_refused() -> None:
    target = Target(
        device="cuda", machine=platform.machine(), bound=Bound(compute_capability="1.3")
    )
    with pytest.raises(Elsewhere, match=r"compute capability 1\.3"):
        loading.check_machine(_engine(target))


def test_machine_code_needs_someone_to_vouch_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_register", lambda: tmp_path / loading.REGISTER)
    code, ours, theirs = _engine(), "a" * 64, "b" * 64
    with pytest.raises(Elsewhere, match="machine code"):
        loading.check_trust(tmp_path, code, ours, trust=False, expect=None)
    loading.check_trust(tmp_path, code, ours, trust=True, expect=None)
    loading.check_trust(tmp_path, code, ours, trust=False, expect=ours)
    loading.check_trust(tmp_path, _engine(form="onnx"), ours, trust=False, expect=None)
    with pytest.raises(Wrong, match="its SHA-256 is"):
        loading.check_trust(tmp_path, code, ours, trust=True, expect=theirs)
    loading.register(ours)
    loading.check_trust(tmp_path, code, ours, trust=False, expect=None)
    with pytest.raises(Elsewhere):
        loading.check_trust(tmp_path, code, theirs, trust=False, expect=None)
