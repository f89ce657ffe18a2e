"""MagCache's ratios: what they are, when they are calibrated, and what has none."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from pipelines import tiny

from qbench.errors import InputError
from qbench.optimizations import axes, compilation
from qbench.optimizations.caching import magnitudes
from qbench.optimizations.calibration import Occasion, unmeasured
from qbench.pipelines import specs
from qbench.recipe.schema import Variant

STEPS = 8


def _pipeline(family: str, scratch: Path) -> tuple[Any, Any]:
    video = tiny.build(family, scratch)
    return video, tiny.settings(video, steps=STEPS)


def test_magnitudes_are_ratios_of_residuals(tmp_path: Path) -> None:
    """Of a plain run, by hand: blocks' output less input, both halves of guidance."""
    video, run = _pipeline("cogvideox", tmp_path)
    model = specs.find("tiny-cogvideox")
    occasion = Occasion(run, model, ())
    found = magnitudes.ratios(video, occasion, 1)
    blocks, seen = video.repeated_blocks(), []

    def given(_: Any, __: Any, kwargs: Any) -> None:
        seen.append(kwargs["hidden_states"])

    blocks[0].register_forward_pre_hook(given, with_kwargs=True)
    blocks[-1].register_forward_hook(lambda _, __, out: seen.append(out[0]))
    (text,) = unmeasured(1, "", model, ())
    seed = magnitudes.SEED
    video.denoise(
        run, video.encode(run, [text]), video.noise(run, seed), lambda _: None,
        generators=video.generators([seed]),
    )  # fmt: skip
    norms = [(out - given).norm(dim=-1) for given, out in zip(seen[::2], seen[1::2], strict=True)]
    expected = [1.0] + [float((b / a).mean()) for a, b in itertools.pairwise(norms)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_ratios_are_calibrated_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler's time is the first call's, and not the calibration's."""
    video, run = _pipeline("cogvideox", tmp_path)
    order: list[str] = []
    for place, name in ((magnitudes, "ratios"), (compilation, "apply")):
        plain = getattr(place, name)

        def noted(*given: Any, plain: Any = plain, place: Any = place) -> Any:
            order.append(place.__name__.rpartition(".")[2])
            return plain(*given)

        monkeypatch.setattr(place, name, noted)
    wanted = {"cache": {"kind": "mag", "threshold": 0.1, "prompts": 1}, "compile": {}}
    occasion = Occasion(run, specs.find("tiny-cogvideox"), ())
    axes.apply(video, Variant.model_validate(wanted), "cpu", STEPS, occasion)
    assert order == ["magnitudes", "compilation"]


def test_no_ratio_is_made_of_what_is_no_number(tmp_path: Path) -> None:
    video, run = _pipeline("wan", tmp_path)
    video.repeated_blocks()[1].ffn.net[2].bias.data[0] = math.nan
    fields = {"kind": "mag", "threshold": 0.1, "prompts": 1}
    occasion = Occasion(run, specs.find("tiny-cogvideox"), ())
    with pytest.raises(InputError, match="NaN or infinity by step 2 of 8"):
        axes.apply(video, Variant.model_validate({"cache": fields}), "cpu", STEPS, occasion)
