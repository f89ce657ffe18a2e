"""Turn finished runs into what results/published/ holds: packed records, profiles, and the report.

    python -m scripts.publish RUNS... results/published/NAME [--charts] [--sheets] [--page]
    python -m scripts.publish --rewrite [FOLDER...]

The records and profiles go into one compressed file, `NAME/records.jsonl.xz`, which qbench reads as
the folders that it was made from. Runs that were interrupted are left out; videos and raw outputs
stay behind, and so do charts where they are not asked for, and results.csv: what is published
travels with every clone, and `qbench report` makes them anew. Of shards, each with a run of the
reference, all are kept, for the report pairs a variant with its own; of copies of one run, one is.
To add runs to what is published already, name its folder among RUNS.

Digits that say nothing are left out, for no compressor makes noise smaller. A video's value of a
metric is kept to the largest step of 1 or 5 in some decimal that is at most a tenth of the middle
half's spread (0.5 dB for a PSNR), five significant digits at most: that moves a mean by a 25th of
its standard error, about. Where a verdict would change by it, steps of a 25th, a 50th and then of
a 100th are taken; one that still does stops the program. Every other figure that was measured has
seven digits, as a clock of 100 ns has for a second. What was asked for (recipe, sizes) and where
stays as it is.

`--rewrite` writes the reports of all published matrices anew from their records, or of those named.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles

from qbench.quality.statistics import summarise
from qbench.report import writer
from qbench.report.page.write import FILE, Options
from qbench.results import archive, store
from qbench.results.ranking import rankings
from qbench.results.record import Record
from qbench.run.profiling import PROFILE

UNFINISHED = ("running", "interrupted")
DIGITS = 5  # of a video's value of a metric, at most
LEVELS = (10, 25, 50, 100)  # that the middle half of such values has at least
STEPS = (5, 1)  # of the last decimal; one in the other, or rounding again could go to and fro
MEASURED_DIGITS = 7  # of a time, a rate, a mean ...
# What is no measurement, and what others may take digests of.
EXACT = {"recipe", "overrides", "environment", "fingerprints", "generation", "reference"}
SUMMARIES = ("latency", "step", "paired_speed_up")  # see `derive`
PUBLISHED = Path(__file__).parent.parent / "results" / "published"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("places", type=Path, nargs="*", metavar="RUNS... TARGET")
    parser.add_argument("--sheets", action="store_true", help="contact sheets side by side too")
    parser.add_argument("--charts", action="store_true", help="charts too, where a document links")
    parser.add_argument("--page", action="store_true", help="the page that a browser opens too")
    parser.add_argument("--rewrite", action="store_true", help="only the reports, anew")
    args = parser.parse_args()
    if args.rewrite:
        for path in store.find(args.places or [PUBLISHED]):
            if archive.named(path.name):
                _report(path.parent, store.read_all([path])[0], args.page, args.charts)
        return
    if len(args.places) < 2:
        parser.error("name the runs, then the folder to publish them in")
    *runs, target = args.places
    found, unreadable = store.read_all(store.find(runs))
    for line in unreadable:
        print(f"left out: {line}")
    once = {record.run: (path, record) for path, record in reversed(found)}
    kept = [one for one in reversed(once.values()) if one[1].status not in UNFINISHED]
    verdicts = _verdicts(kept).items()
    for levels in LEVELS:
        texts = [(path, _rounded(store.read_text(path), path, levels)) for path, _ in kept]
        rounded = [(path, store.parse(text, path)) for path, text in texts]
        if not (changed := verdicts ^ _verdicts(rounded).items()):
            break
    else:
        parser.error(f"rounding would change verdicts: {sorted(changed)}")
    made = archive.write(list(_entries(texts)), target / archive.FILE)
    # The sheets are drawn from the runs' own; without them they would be missing from the report.
    found = kept if args.sheets else store.read_all([made])[0]
    _report(target, found, args.page, args.charts or args.sheets)


def _entries(texts: list[tuple[Path, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Every record, and the profile beside it, under the name of its run's folder."""
    times: Counter[str] = Counter()
    for path, text in texts:
        name = path.parent.name
        times[name] += 1
        folder = name if times[name] == 1 else f"{name}-{times[name]}"
        yield f"{folder}/{store.FILE}", text
        profile = store.read_beside(path.parent, PROFILE, store.LARGEST)
        if profile is not None:
            yield f"{folder}/{PROFILE}", json.dumps(_shortened(json.loads(profile))).encode()


def _rounded(text: bytes, path: Path, levels: int) -> bytes:
    """A record with its samples to fewer digits, and what follows of them."""
    record = json.loads(text)
    for name in record.keys() - EXACT:
        record[name] = _shortened(record[name])
    for metric in (record.get("quality") or {}).values():
        samples = metric.get("samples") or []
        if samples and all(math.isfinite(value) for value in samples):
            metric["samples"] = _levelled(samples, levels)
            summary = summarise(metric["samples"])
            metric["value"] = _shortened(summary.mean)
            metric["summary"] = _shortened(summary.model_dump())
    read = store.parse(json.dumps(record).encode(), path).model_dump(mode="json")
    record |= {name: _shortened(read[name]) for name in SUMMARIES}
    return json.dumps(record).encode()


def _levelled(samples: list[float], levels: int) -> list[float]:
    """The same in steps that leave so many between the quartiles, and to DIGITS at most."""
    before: list[float] = []
    while samples != before:  # to what stays as it is when it is published again
        before, samples = samples, [_significant(value, DIGITS) for value in samples]
        low, _, high = quantiles(samples, n=4) if len(samples) > 1 else (0.0, 0.0, 0.0)
        if high > low:
            largest = (high - low) / levels
            decimal = -math.floor(math.log10(largest))
            step = next(step for step in STEPS if step * 10.0**-decimal <= largest or step == 1)
            whole = [step * round(value / step * 10.0**decimal) for value in samples]
            samples = [_significant(round(n * 10.0**-decimal, decimal), DIGITS) for n in whole]
    return samples


def _shortened(value: object) -> object:
    """The same with MEASURED_DIGITS of every number; counts, though floats, stay whole."""
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
        return _significant(value, MEASURED_DIGITS)
    return value


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _verdicts(found: list[tuple[Path, Record]]) -> dict[str, tuple[str, str]]:
    """Verdict and distance of every run that has one."""
    return {
        run: (judged.text, judged.distance)
        for ranking in rankings(found)
        for run, judged in ranking.judged.items()
    }


def _report(
    target: Path, found: list[tuple[Path, Record]], page: bool = False, charts: bool = False
) -> None:
    """The report anew, with what it had; contact sheets stay where the runs' own are gone."""
    out = target / "report"
    options = Options() if page or (out / FILE).is_file() else None
    before = set(out.glob("*.png"))
    for old in before:
        old.unlink()
    made = writer.write(rankings(found), [], out, options, charts or bool(before))
    unasked = [] if charts else [path for path in out.glob("*.png") if path not in before]
    for left in (*out.glob("*.svg"), out / "results.csv", out / writer.MANIFEST, *unasked):
        left.unlink()
    parts = made.read_text(encoding="utf-8").split("\n\n")
    links = [f"]({path.name})" for path in unasked]
    shown = [part for part in parts if not part.strip().endswith(tuple(links))]
    made.write_text("\n\n".join(shown).rstrip() + "\n", encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
