"""What TensorRT's engine says where the runtime refuses, without a GPU: a planted runtime."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qbench.engines import tensorrt, tensorrt_plan
from qbench.engines.inputs import Signature
from qbench.errors import Unsupported
from qbench.recipe.schema import EngineOptions


class _Logger:
    ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

    def log(self, severity: object, message: str) -> None:
        raise NotImplementedError


class _Refusing:
    """A runtime that says why, and gives None, from the stage on that is named."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.told: _Logger | None = None

    def library(self) -> object:
        return SimpleNamespace(__name__="tensorrt", ILogger=_Logger, Runtime=self.runtime)

    def runtime(self, told: _Logger) -> object:
        self.told = told
        return SimpleNamespace(deserialize_cuda_engine=self._plan)

    def _plan(self, _: bytes) -> object:
        if self.stage == "plan":
            self._refuse()
            return None
        return self

    device_memory_size_v2 = 7 * 2**30

    def create_execution_context(self) -> None:
        self._refuse()

    def _refuse(self) -> None:
        assert self.told is not None
        self.told.log(_Logger.WARNING, "nothing that matters")
        self.told.log(_Logger.ERROR, "the first\n reason")
        self.told.log(_Logger.INTERNAL_ERROR, "the second")


@pytest.mark.parametrize(
    ("stage", "said"),
    [("plan", "refuses the plan"), ("context", r"2 GiB are free \(the plan asks for 7 GiB\)")],
)
def test_a_refusal_says_all_that_tensorrt_said(
    stage: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_plan, "library", _Refusing(stage).library)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 2**30, 8 * 2**30))
    with pytest.raises(Unsupported, match=f"{said}.*: the first reason; the second$"):
        tensorrt.Engine(b"a plan", ["hidden_states"], "cuda")


class _Rtx(_Refusing):
    """A runtime as TensorRT for RTX's: nothing that it makes keeps alive what it was made with.

    gone: what went, in order.
    """

    def __init__(self) -> None:
        super().__init__("none")
        self.gone: list[str] = []

    num_io_tensors = 1

    def library(self) -> object:
        return SimpleNamespace(
            __name__="tensorrt_rtx",
            ILogger=_Logger,
            Runtime=self.runtime,
            TensorIOMode=SimpleNamespace(OUTPUT="output"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        )

    def get_tensor_name(self, _: int) -> str:
        return "prediction"

    def get_tensor_dtype(self, _: str) -> object:
        return SimpleNamespace(name="BF16")

    def get_tensor_mode(self, _: str) -> str:
        return "output"

    def create_runtime_config(self) -> _Made:
        return _Made("configuration", self)

    def create_execution_context(self, config: _Made | None = None) -> _Made:
        assert config is not None
        assert config.cache() is not None, "its cache is gone"
        return _Made("context", self)


class _Made:
    def __init__(self, name: str, runtime: _Rtx) -> None:
        self.runtime, self.cache = runtime, weakref.ref(self)
        weakref.finalize(self, runtime.gone.append, name)

    def create_runtime_cache(self) -> _Made:
        return _Made("cache", self.runtime)

    def set_runtime_cache(self, cache: _Made) -> None:
        self.cache = weakref.ref(cache)

    def serialize(self) -> bytes:
        return b"compiled"


def test_what_a_context_was_made_with_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = _Rtx()
    monkeypatch.setattr(tensorrt_plan, "library", runtime.library)
    engine = tensorrt.Engine(b"a plan", ["hidden_states"], "cuda")
    assert engine.compiled() == b"compiled"
    assert runtime.gone == []
    del engine
    gc.collect()
    assert runtime.gone == ["context", "configuration", "cache"]


class _Builder:
    """A builder that reads every graph and builds none.

    errors: what it says then.
    """

    def __init__(self, errors: list[str]) -> None:
        self.errors = errors

    def library(self) -> object:
        return SimpleNamespace(
            __name__="tensorrt_rtx",
            __version__="1.0",
            ILogger=_Logger,
            Builder=self.builder,
            NetworkDefinitionCreationFlag=SimpleNamespace(),
            OnnxParser=lambda network, told: SimpleNamespace(parse_from_file=lambda path: True),
        )

    def builder(self, told: _Logger) -> object:
        def build(network: object, config: object) -> None:
            for error in self.errors:
                told.log(_Logger.ERROR, error)

        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(num_inputs=0),
            create_builder_config=lambda: SimpleNamespace(add_optimization_profile=lambda _: 0),
            create_optimization_profile=SimpleNamespace,
            build_serialized_network=build,
        )


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (["Cuda Runtime (no driver)"], "asks a GPU's driver"),
        (["bad profile", "Cuda Runtime (no driver)"], "not build a plan: bad profile; Cuda Run"),
        ([], "not build a plan: it does not say why$"),
        (["a", "a", "b", "c", "d"], "not build a plan: a; b; c$"),
    ],
)
def test_a_plan_that_is_not_built_tells_the_first_error_first(
    errors: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1.4 for RTX has the missing driver follow each error, whatever it was."""
    monkeypatch.setattr(tensorrt_plan, "library", _Builder(errors).library)
    taken = Signature(torch.nn.Linear, {"x": 0}, frozenset({"x"}))
    example = {"x": torch.zeros(2, 4)}
    with pytest.raises(Unsupported, match=said):
        tensorrt_plan.make(Path("denoiser.onnx"), taken, example, EngineOptions(), gpu=False)


def test_a_tensor_of_another_type_is_not_read_as_whole_numbers() -> None:
    kinds = ["HALF", "FLOAT", "BF16", "INT64", "INT32"]
    found = [tensorrt._torch_name(SimpleNamespace(name=kind)) for kind in kinds]
    assert found == ["float16", "float32", "bfloat16", "int64", "int32"]
    with pytest.raises(Unsupported, match="a tensor in FP8"):
        tensorrt._torch_name(SimpleNamespace(name="FP8"))
