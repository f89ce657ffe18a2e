"""Sensitivity as a chart: layers by timestep, and the scheme that each layer got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qbench import textfile
from qbench.search.sensitivity import Table


def draw(
    table: Table, scheme: str, steps: Sequence[int], chosen: Mapping[str, str], path: Path
) -> Path:
    """Write a PNG: relative error that `scheme` causes at each layer alone, by denoise step.

    steps: of each call that was measured, from 0 on.
    """
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    names, columns = list(table), sorted(set(steps))
    values = np.array(
        [
            [
                np.mean([e for e, s in zip(table[name][scheme], steps, strict=True) if s == step])
                ** 0.5
                for step in columns
            ]
            for name in names
        ]
    )
    height = max(3.0, 0.17 * len(names) + 1.2)
    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    shown = axes.imshow(
        values.clip(1e-8), aspect="auto", norm=LogNorm(), cmap="viridis", interpolation="nearest"
    )
    axes.set_xticks(range(len(columns)), [str(step + 1) for step in columns])
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_xlabel("denoise step")
    axes.set_title(f"relative error of one step with {scheme} at one layer", fontsize=9)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(names)), [chosen[name] for name in names], fontsize=6)
    right.set_ylabel("chosen")
    figure.colorbar(shown, ax=axes, pad=0.2, label="relative error")
    with textfile.replaced(path) as partial:
        figure.savefig(partial, dpi=120)
    pyplot.close(figure)
    return path
