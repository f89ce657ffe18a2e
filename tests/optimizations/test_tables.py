"""The tables hold every name that a recipe may choose, and unknown names raise."""

from __future__ import annotations

import typing

import pytest

from qbench import engines
from qbench.engines import formats
from qbench.engines.base import engine
from qbench.optimizations import attention, axes, caching, schemes
from qbench.recipe import choices
from qbench.recipe.schema import Quantize, Variant


def test_each_name_that_a_recipe_may_choose_has_its_entry_and_no_other() -> None:
    named = {(backend, name) for backend, names in choices.SCHEMES.items() for name in names}
    assert set(schemes.SCHEMES) == named
    assert set(choices.SCHEMES) == set(typing.get_args(choices.Backend))
    assert {"auto", *attention.KERNELS} == set(typing.get_args(choices.Attention))
    assert set(caching.CACHES) == set(typing.get_args(choices.CacheKind))
    assert set(choices.BY_CONTENT) <= set(caching.CACHES)
    for name in choices.ENGINES:
        assert callable(engine(name).write)
        assert callable(engine(name).open)
        assert formats.module(formats.OF_ENGINE[name]) is engine(name)
        assert engine(name).RULES
        assert set(engine(name).PACKAGES) <= set(engines.packages())
    for one in schemes.SCHEMES.values():
        assert (one.build is None) == (one.backend in choices.ENGINES)
        assert one.static == one.name.endswith("_static")
    of_tensorrt = choices.SCHEMES["tensorrt"]
    computed = {schemes.SCHEMES["tensorrt", name].activations for name in of_tensorrt}
    assert computed == {"int8", "fp8"}  # what its graphs can be written in


def test_unknown_names_raise() -> None:
    unknown = Variant.model_construct(attention="flash-5", memory=None, decode=None)
    with pytest.raises(KeyError, match="flash-5"):
        attention.load("flash-5")
    with pytest.raises(KeyError, match="flash-5"):
        axes.arithmetic(unknown)
    with pytest.raises(KeyError, match="int3"):
        schemes.find(Quantize.model_construct(backend="torchao", scheme="int3"))
    with pytest.raises(KeyError, match="openvino"):
        engine("openvino")


@pytest.mark.parametrize(
    ("fields", "formats"),
    [
        ({}, {"fp32"}),
        ({"dtype": "bf16", "quantize": ("torchao", "fp8_weight_only")}, {"bf16"}),
        ({"dtype": "bf16", "quantize": ("torchao", "fp8_dynamic_tensor")}, {"bf16", "fp8"}),
        ({"quantize": ("torchao", "int8_dynamic")}, {"fp32", "int8"}),
        ({"dtype": "fp16", "attention": "fp8"}, {"fp16", "fp8"}),
    ],
)
def test_formats_in_which_gemms_are_computed(
    fields: dict[str, typing.Any], formats: set[str]
) -> None:
    if "quantize" in fields:
        backend, scheme = fields["quantize"]
        fields = fields | {"quantize": {"backend": backend, "scheme": scheme}}
    assert axes.arithmetic(Variant.model_validate(fields)) == formats
