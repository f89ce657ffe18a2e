"""What the record says that a cache left to compute, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipelines import tiny

from qbench.meters import flops
from qbench.optimizations import axes
from qbench.recipe.schema import Variant
from qbench.run.computing import Computing


def test_attention_that_pab_reuses_is_not_counted(tmp_path: Path) -> None:
    """Of 8 steps, at 999 ... 124, the fourth and sixth lie in its range and reuse; the last, which
    PAB would reuse in too, is computed.
    """
    video = tiny.build("cogvideox", tmp_path)
    run = tiny.settings(video, steps=8)
    work = flops.count(video.denoiser, video.step_inputs(run), 4)
    variant = Variant.model_validate({"cache": {"kind": "pab", "interval": 2}})
    applied = axes.apply(video, variant, "cpu", run.steps)
    assert applied.cached is not None
    computing, said = Computing(applied.cached, work), []
    assert computing.summed() is None
    for seeds in ([3, 4], [5]):
        on_step = computing.follow(said.append, len(seeds))
        own = video.generators(seeds)
        video.denoise(run, *tiny.inputs(video, run, seeds), on_step, generators=own)
    found = computing.summed()
    assert found is not None
    assert said == [*range(8), *range(8)]
    assert (found.videos, found.blocks, found.attention) == (3, 8.0, 6.0)
    names = [f"transformer_blocks.{n}.attn1." for n in range(2)]
    inside = sum(flop for name, flop in work.linear_flop.items() if name.startswith(tuple(names)))
    share = (inside + work.attention_flop) / work.flop
    assert 0.2 < share < 0.8
    assert found.steps == pytest.approx(8 - 2 * share)
    assert not found.everything
    assert [step == 1 for step in found.by_step] == [True] * 3 + [False, True, False, True, True]
    computing.clear()
    assert computing.summed() is None
