"""From rankings to what the page shows: every figure with its interval and n, every row that ran
or did not, and what a variant's own view tells.

All text is made plain here (`escape.plain`): no control characters, no reversals of direction. That
none of it becomes markup is up to who shows it, which does so as text alone.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qbench import escape, explain
from qbench.errors import InputError
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.statistics import Metric
from qbench.recipe import files, shipped
from qbench.report import charts, markdown, tables
from qbench.report.page import model
from qbench.report.page.answer import answer
from qbench.results.profiles import profiles_of
from qbench.results.ranking import Ranking, label
from qbench.results.record import VIDEO_STAGES, Record

if TYPE_CHECKING:
    from qbench.meters.environment import Environment
    from qbench.meters.profile import Profile

MOST = 1000  # records on a page
SAMPLES = 400  # timed units of a run that its strip shows
TEXT = 2000  # characters of a reason or a note
FORM = re.compile(r"^\{:\.(\d)f\}(.*)$")
QUALITY = "quality."  # before a metric's name, which may be any, in the key of its measure

SPEED = (
    model.Measure("speed_up", "speed-up", "higher", "speed", "ratio", "over the reference"),
    model.Measure("video_s", "video", "lower", "speed", "seconds", "seconds of a whole video"),
    model.Measure("step_s", "step", "lower", "speed", "seconds", "seconds of a denoise step"),
    model.Measure(
        "videos_per_hour", "videos an hour", "higher", "speed", "number", "one at a time", False
    ),
    model.Measure(
        "first_call_s", "first call", "lower", "speed", "seconds", "compiling and the first video"
    ),
    model.Measure("mfu", "MFU", "higher", "speed", "share", "of the GEMM peak measured", False),
    model.Measure("energy_j", "energy", "lower", "speed", "fixed:0: J", "joules of a timed unit"),
    model.Measure(
        "peak_bytes", "peak memory", "lower", "memory", "bytes", "of the stages of a video"
    ),
    model.Measure(
        "weights_bytes", "weights", "lower", "memory", "bytes", "of the denoiser, as stored"
    ),
)


def board(ranking: Ranking, most: int = MOST) -> model.Board:
    """All that the page shows of one ranking, but for its videos: `most` records of it, the first
    in its order.
    """
    profiles = profiles_of(ranking)
    places: list[Environment] = []
    variants = []
    for number, record in enumerate(ranking.records[:most]):
        if record.environment not in places:
            places.append(record.environment)
        place = places.index(record.environment)
        variants.append(_variant(f"v{number}", record, ranking, profiles, place))
    measures = _measures(variants, ranking)
    notes = markdown.notes(ranking)
    if (left := len(ranking.records) - most) > 0:
        notes.insert(0, f"The page holds {most:,} records; {left:,} more are in report.md alone.")
    return model.Board(
        title=escape.plain(ranking.title()),
        answer=answer(ranking),
        how=_said(markdown.how(ranking)),
        axes=_axes(measures, variants),
        measures=measures,
        variants=tuple(variants),
        notes=tuple(_said(note) for note in notes),
        environments=tuple(_environment(one) for one in places),
    )


def _variant(
    id: str, record: Record, ranking: Ranking, profiles: Mapping[str, Profile], place: int
) -> model.Variant:
    judged = ranking.judged.get(record.run)
    timed = record.recipe.measure.timing
    unit = record.recipe.measure.unit
    samples = (record.step_host_s if unit == "step" else record.latency_s) if timed else []
    growth = record.error_growth
    return model.Variant(
        id=id,
        name=_said(label(record, ranking)),
        about=_said(record.recipe.about),
        status=record.status,
        reason=_said(record.reason),
        figures=_figures(record, ranking),
        verdict=None
        if judged is None
        else model.Verdict(
            judged.verdict,
            judged.text,
            _said(judged.because),
            judged.distance,
            tuple(_said(text) for text in judged.missing),
        ),
        speed_word=ranking.speed_word(record),
        reference=record is ranking.reference,
        floor=record.recipe.noise_floor,
        stages=_stages(record, ranking),
        unit=unit,
        samples=tuple(samples[:SAMPLES]),
        paired=tuple(record.paired_reference_s[:SAMPLES]) if timed else (),
        growth=model.Growth(growth.videos, tuple(growth.free), tuple(growth.forced))
        if growth
        else None,
        explained=tuple(
            "\n".join(map(escape.plain, text.splitlines()))
            for text in explain.paragraphs(record, ranking, profiles, others=False)
        ),
        recipe=_yaml(record),
        command=command(record),
        prints={k: _said(str(v)) for k, v in record.fingerprints.model_dump().items() if v}
        | {"run": _said(record.run)},
        environment=place,
        started=_said(record.started),
    )


def _stages(record: Record, ranking: Ranking) -> tuple[model.Stage, ...]:
    """Those of a video as long as the paired speed-up says, by the rule of every table."""
    timed, scale = record.recipe.measure.timing, ranking.timing(record).scale
    return tuple(
        model.Stage(
            name=_said(name),
            seconds=statistics.median(stage.seconds) * (scale if name in VIDEO_STAGES else 1)
            if timed
            else None,
            n=len(stage.seconds),
            bytes=record.held_bytes(stage.peak),
        )
        for name, stage in record.stages.items()
    )


def _figures(record: Record, ranking: Ranking) -> dict[str, model.Figure]:
    """By the key of the measure. None where it did not run."""
    if record.status not in ("ok", "invalid"):
        return {}
    shown, found = ranking.timing(record), dict[str, model.Figure]()
    timed = record.recipe.measure.timing
    samples = record.latency or record.step
    n = samples.n if samples else None
    if shown.speed_up is not None:
        ratio = shown.speed_up
        many = ratio.n is None or ratio.n >= tables.FEW
        low, high = (ratio.low, ratio.high) if many else (None, None)
        found["speed_up"] = model.Figure(ratio.value, low, high, ratio.n or n)
    elif record is ranking.reference and shown.seconds:
        found["speed_up"] = model.Figure(1.0, note="the reference")
    if shown.video_s:
        low, high = charts.span(record, ranking)
        found["video_s"] = model.Figure(shown.video_s, low, high, n)
        least, most = (3600 / high, 3600 / low) if low and high else (None, None)
        found["videos_per_hour"] = model.Figure(3600 / shown.video_s, least, most, n)
    if shown.step_s:
        step = record.step
        own = step is not None and shown.scale == 1  # else the interval is of other seconds
        least, most = (step.low, step.high) if step and own else (None, None)
        found["step_s"] = model.Figure(shown.step_s, least, most, step.n if step else None)
    if timed and record.first_call_s:
        note = "cold caches" if record.compiler_cache == "cold" else ""
        if warm := record.first_call_warm_s:
            note += f", {warm:.3g} s with warm ones" if note else f"{warm:.3g} s with warm caches"
        found["first_call_s"] = model.Figure(record.first_call_s, n=1, note=note)
    if share := record.mfu(shown.step_s):
        found["mfu"] = model.Figure(share)
    if timed and record.gauges and (energy := record.gauges.mean_energy_j()):
        found["energy_j"] = model.Figure(energy, n=len(record.gauges.energy_j))
    size, kind = tables.peak(record)
    if size:
        counts = [len(stage.seconds) for stage in record.stages.values()]
        found["peak_bytes"] = model.Figure(size, n=max(counts, default=None), note=kind)
    if record.weights_bytes:
        found["weights_bytes"] = model.Figure(record.weights_bytes)
    for name, metric in record.quality.items():
        found[QUALITY + name] = _quality(metric, record.videos)
    return found


def _quality(metric: Metric, videos: int) -> model.Figure:
    bounds = metric.summary or metric
    n = metric.summary.n if metric.summary else videos
    return model.Figure(metric.value, bounds.low, bounds.high, n, _said(metric.note))


def _measures(variants: list[model.Variant], ranking: Ranking) -> tuple[model.Measure, ...]:
    """Those that some variant has a figure of: speed, memory, then quality as in the table."""
    had = {key for variant in variants for key in variant.figures}
    found = [measure for measure in SPEED if measure.key in had]
    seen: dict[str, Metric] = {}
    for record in ranking.records:
        for name, metric in record.quality.items():
            seen.setdefault(name, metric)
    known = [name for name in METRICS if QUALITY + name in had]
    found += [_measure(name, seen[name]) for name in known]
    others = sorted(name for name in seen if QUALITY + name in had and name not in METRICS)
    return (*found, *(_measure(name, seen[name]) for name in others))


def _measure(name: str, metric: Metric) -> model.Measure:
    spec = METRICS.get(name)
    column = spec.column if spec else None
    form = "number"
    if column and (fixed := FORM.match(column.form)):
        form = f"fixed:{fixed[1]}:{fixed[2]}"
    elif column and column.form.endswith("%}"):
        form = "share"
    return model.Measure(
        key=QUALITY + name,
        label=column.heading if column else _said(name.replace("_", " ")),
        better=metric.better,
        kind="quality",
        form=form,
        what=f"{spec.what}, {spec.unit}" if spec else _said(metric.unit),
        shown=column is not None,
    )


def _axes(measures: tuple[model.Measure, ...], variants: list[model.Variant]) -> tuple[str, str]:
    """What the chart begins with: what is gained, and what it costs."""
    drawn = {
        measure.key
        for measure in measures
        if sum(measure.key in variant.figures for variant in variants) > 1
    }
    across = ("speed_up", "video_s", "step_s", "weights_bytes", "peak_bytes")
    up = (QUALITY + "psnr", *(m.key for m in measures if m.kind == "quality"), *across[::-1])
    x = next((key for key in across if key in drawn), across[0])
    y = next((key for key in up if key in drawn and key != x), up[-1])
    return x, y


def command(record: Record) -> str:
    """What measures this again: a shipped recipe by its name, any other from the YAML beside it.

    What the command line changed is named either way, since it changed the reference too; so is
    what the shipped recipe of today has otherwise.
    """
    name, changes = record.recipe.name, _changes(record)
    if changes is None:
        name, changes = f"{record.recipe.plain_name}.yaml", record.overrides
    words = ["qbench", "run", name, *(f"--set={key}={text}" for key, text in changes.items())]
    return shlex.join(map(escape.plain, words))


def _changes(record: Record) -> dict[str, str] | None:
    """What makes the shipped recipe of this name the one measured; None where nothing does."""
    recipe = record.recipe
    if recipe.name not in _shipped_names():
        return None
    path, changes = shipped.path(recipe.name), dict(record.overrides)
    try:
        now = files.load(path, changes)
        if now.fingerprint() != recipe.fingerprint():
            changes |= {
                key: text
                for key, text in files.overriding(now, recipe).items()
                if key not in ("name", "about", "prompts.count")
            }
            now = files.load(path, changes)
    except InputError:
        return None
    return changes if now.fingerprint() == recipe.fingerprint() else None


@functools.cache
def _shipped_names() -> frozenset[str]:
    return frozenset(shipped.names())


def _yaml(record: Record) -> str:
    """The recipe as resolved, in a form that `qbench run` reads."""
    facts = record.recipe.model_dump(mode="json")
    return "\n".join(_block(json.dumps({key: value})) for key, value in facts.items())


@functools.lru_cache(maxsize=4096)
def _block(facts: str) -> str:
    """One field of a recipe as YAML: most are those of many recipes."""
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast, where it is built
    text: str = yaml.dump(
        json.loads(facts), Dumper=dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return "\n".join(map(escape.plain, text.splitlines()))


def _environment(environment: Environment) -> dict[str, str]:
    """Line by line as a reader looks for them."""
    facts = environment.model_dump(exclude_none=True)
    found: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            found |= {_said(str(k)): _said(str(v)) for k, v in value.items()}
        elif value not in ("", []):
            text = tables.bytes_text(value) if key.endswith("_bytes") else str(value)
            found[_said(key.removesuffix("_bytes").replace("_", " "))] = _said(text)
    return found


def _said(text: str) -> str:
    return escape.clipped(escape.plain(text), TEXT)
