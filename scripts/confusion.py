"""The confusion table: every fault planted in decoded frames, and the verdict that it gets.

    python -m scripts.confusion RUNS [--prompts N] [--as-run] [--out confusion.json]

RUNS is a folder of finished runs that share a ranking: the reference with its videos, floor/seed
and floor/kernel, and whatever else stands there (`python -m scripts.matrix faults` makes them).
Frame faults are planted in the reference's stored videos, so no model runs; the other runs are
judged beside them. Each is judged twice: by every figure, and by those alone that need no network,
as with a model of one's own and no CLIP at hand. Exits with 1 where a fault of the recipes, or one
planted here, gets *drift* or *indistinguishable*.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.quality.floor import Floor, Quality
from qbench.quality.statistics import summarise
from qbench.quality.verdict import Candidate, Judged, judge
from scripts import bench

if TYPE_CHECKING:
    from qbench.results.ranking import Ranking
    from qbench.results.record import Record

# Figures that a network computes: what is left is there for any model, on any machine.
NETWORKS = ("clip_score", "clip_consistency", "adherence", "fvd_reference", "kvd_reference")
PASSED = ("drift", "indistinguishable")


@dataclass(frozen=True)
class Row:
    """A fault, or a run beside it, with both verdicts. planted: it must not pass."""

    name: str
    planted: bool
    judged: Judged
    bare: Judged  # without networks


def measured(ranking: Ranking, count: int | None = None) -> dict[str, Candidate]:
    """Every frame fault, planted in the reference's videos: name -> its figures."""
    from qbench import prompts
    from qbench.optimizations.frame_faults import CHANGES
    from qbench.pipelines import specs
    from qbench.quality import evaluate
    from qbench.quality.outputs import FOLDER, Outputs

    reference = ranking.reference
    if reference is None:
        raise SystemExit("no finished run of the reference here")
    folder = ranking.folders[ranking.records.index(reference)]
    kept = Outputs(folder / FOLDER)
    if not len(kept):
        raise SystemExit(f"{folder}: the reference's videos are not here any more")
    recipe, made = reference.recipe, reference.generation
    texts = list(prompts.load(recipe.prompts.set or specs.find(recipe.model).prompts).prompts)
    texts = texts[: min(count or len(kept), len(kept))]
    shape = tuple(int(made[name] or 0) for name in ("frames", "height", "width"))
    found = {}
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as place:
            changed = Outputs(Path(place))
            for start in range(0, len(texts), 16):
                stop = min(start + 16, len(texts))
                frames, latents = kept.read(start, stop)
                changed.add(start, change(frames.float()), latents)
            evaluation = evaluate.measure(
                changed, kept, texts, (shape[0], 3, shape[1], shape[2]),
                specs.find(recipe.model), recipe.quality, "cpu",
            )  # fmt: skip
        found[name] = Candidate(name, evaluation.metrics, "; ".join(evaluation.faults))
    return found


def rows(ranking: Ranking, planted: dict[str, Candidate], count: int | None = None) -> list[Row]:
    """Both verdicts on every fault and on every run of the ranking, judged as one table.

    count: of the videos, the first so many.
    """
    from qbench.quality.metrics import catalogue

    reference = ranking.reference
    assert reference is not None
    candidates = [*planted.values(), *(_seen(one, _first, count) for one in ranking.candidates)]
    theirs, floor = _first(reference.quality, count), _floor(ranking.floor, _first, count)
    margins = catalogue.margins(reference.recipe.quality, theirs)
    full = judge(candidates, theirs, floor, margins)
    bare = judge(
        [_seen(one, _bare, count) for one in candidates],
        _bare(theirs, count),
        _floor(floor, _bare, count),
        margins,
    )
    records = {record.run: record for record in ranking.measured}
    made = []
    for one, by_all, by_few in zip(candidates, full, bare, strict=True):
        record = records.get(one.name)
        named = record.recipe.name if record else f"frames: {one.name.replace('_', ' ')}"
        made.append(Row(named, record is None or _is_fault(record), by_all, by_few))
    return made


def _is_fault(record: Record) -> bool:
    return record.recipe.expects in ("degraded", "broken")


def _first(quality: Quality, count: int | None) -> Quality:
    """The figures of the first videos alone; those of a whole set are left out."""
    if count is None:
        return quality
    found = {}
    for name, metric in quality.items():
        if metric.samples and not metric.scale:
            samples = metric.samples[:count]
            summary = summarise(samples)
            changed = {"value": summary.mean, "summary": summary, "samples": samples}
            found[name] = metric.model_copy(update=changed)
    return found


def _bare(quality: Quality, _: int | None) -> Quality:
    return {name: metric for name, metric in quality.items() if not name.startswith(NETWORKS)}


def _seen(
    one: Candidate, view: Callable[[Quality, int | None], Quality], count: int | None
) -> Candidate:
    return replace(one, quality=view(one.quality, count))


def _floor(
    floor: Floor, view: Callable[[Quality, int | None], Quality], count: int | None
) -> Floor:
    return Floor(
        {name: view(quality, count) for name, quality in floor.same_noise.items()},
        {name: view(quality, count) for name, quality in floor.other_noise.items()},
    )


def table(rows: list[list[str]]) -> str:
    """In GitHub's Markdown."""
    head = ["planted", "verdict", "distance", "seen by", "with no network", "seen by"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def cells(row: Row) -> list[str]:
    """Bold where a fault passed."""
    found = [row.name]
    for judged in (row.judged, row.bare):
        wrong = row.planted and judged.verdict in PASSED
        found.append(f"**{judged.text}**" if wrong else judged.text)
        if judged is row.judged:
            found.append(judged.distance or "-")
        found.append(", ".join(_seen_by(judged)) or "-")
    return found


def _seen_by(judged: Judged) -> list[str]:
    return [n for n, said in judged.alone.items() if said in ("broken", "degraded")]


def main() -> None:
    from qbench.results import store
    from qbench.results.ranking import rankings

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("--prompts", type=int, help="of the reference's videos, the first so many")
    parser.add_argument("--as-run", action="store_true", help="plant nothing: judge what was run")
    parser.add_argument("--out", type=Path, help="the table as JSON")
    arguments = parser.parse_args()
    ranking = rankings(store.read_all(store.find([arguments.runs]))[0])[0]
    planted = {} if arguments.as_run else measured(ranking, arguments.prompts)
    found = rows(ranking, planted, arguments.prompts)
    shown = [cells(row) for row in found]
    print(table(shown))
    if arguments.out:
        bench.save(arguments.out, {"rows": shown})
    passed = [row.name for row in found if row.planted and row.judged.verdict in PASSED]
    passed += [row.name for row in found if row.planted and row.bare.verdict in PASSED]
    if passed:
        print(f"passed as good: {', '.join(dict.fromkeys(passed))}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
