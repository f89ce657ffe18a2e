"""Records with figures of one's choice, on the shell of a published one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from conftest import ROOT

from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.ratios import paired_speed_up
from qbench.quality.statistics import Metric
from qbench.recipe.schema import digest
from qbench.results import archive, store
from qbench.results.derive import derived
from qbench.results.record import Record

PACKED = ROOT / "results/published/amd-epyc-2t" / archive.FILE


@functools.cache
def shells() -> dict[str, Record]:
    return {record.recipe.name: record for _, record in store.read_all([PACKED])[0]}


def made(
    name: str = "int8",
    run: str = "",
    latency: Sequence[float] | None = None,
    turns: Sequence[float] | None = None,
    quality: dict[str, Sequence[float]] | None = None,
    **fields: object,
) -> Record:
    """A record of a recipe. turns: the reference's seconds beside each of `latency`."""
    shell = shells()[name]
    changes: dict[str, object] = {"run": run or name, "ended": shell.ended}
    if latency is not None:
        pairs = None if turns is None else paired_speed_up(turns, latency)
        changes |= {
            "latency_s": list(latency),
            "step_s": [],
            "latency": None,
            "step": None,
            "paired_reference_s": list(turns or []),
            "paired_speed_up": pairs,
        }
    if quality is not None:
        changes["quality"] = {key: metric(key, values) for key, values in quality.items()}
        changes["videos"] = max(len(values) for values in quality.values())
    return derived(shell.model_copy(update=changes | fields))


# Deviations of twelve samples of which neighbours are not alike.
STEADY = (0.3, -1.1, 0.8, -0.4, 1.2, -0.7, 0.1, -0.2, 0.9, -1.0, 0.5, -0.6)


def steady(centre: float, spread: float = 0.01, turn: int = 0) -> list[float]:
    """Twelve times with this spread, the same at every call."""
    return [centre * (1 + spread * x) for x in (*STEADY[turn:], *STEADY[:turn])]


def metric(name: str, values: Sequence[float]) -> Metric:
    return METRICS[name].sampled([float(value) for value in values])


def of_software(record: Record, torch: str, commit: str = "0123456789ab") -> Record:
    """The same, measured under another torch and commit."""
    libraries = record.environment.libraries | {"torch": torch}
    environment = record.environment.model_copy(update={"libraries": libraries, "commit": commit})
    prints = {"software": digest(environment.software())}
    fingerprints = record.fingerprints.model_copy(update=prints)
    return record.model_copy(update={"environment": environment, "fingerprints": fingerprints})


def of_recipe(record: Record, **parts: dict[str, object]) -> Record:
    """The same with fields of its recipe changed: `variant={...}`, `measure={...}`."""
    recipe = record.recipe
    for part, changes in parts.items():
        inner = getattr(recipe, part).model_copy(update=changes)
        recipe = recipe.model_copy(update={part: inner})
    generation = dict(record.generation) | parts.get("generation", {})  # type: ignore[arg-type]
    anew = {"recipe": recipe.fingerprint(), "settings": recipe.settings_fingerprint()}
    prints = record.fingerprints.model_copy(update=anew)
    return record.model_copy(
        update={"recipe": recipe, "fingerprints": prints, "generation": generation}
    )


def placed(record: Record, folder: Path) -> Path:
    """On disk in a folder of its own; returns the run's folder."""
    name = hashlib.sha256(record.run.encode()).hexdigest()[:8]
    place = folder / f"{record.recipe.plain_name}-{name}"
    store.write(record, place)
    return place
