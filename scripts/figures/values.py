"""Figures of published records, by the expressions that the documents' marks hold."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qbench.meters.profile import Class
from qbench.quality.metrics.trajectory import ErrorGrowth
from qbench.quality.statistics import paired_difference
from qbench.report import tables
from qbench.results import ranking as ranked
from qbench.results import store
from qbench.results.profiles import profiles_of
from qbench.results.ranking import Ranking
from qbench.results.record import Record

ROOT = Path(__file__).parent.parent.parent
PUBLISHED = ROOT / "results" / "published"
AGAINST = " against "
NUMBER = re.compile(r"[+-]?[\d,]+(?:\.\d+)?")
CONSTANT = re.compile(r"(\d+(?:\.\d+)?)GiB")


class Fault(Exception):
    """A mark that cannot be drawn, in one line."""


@dataclass(frozen=True)
class Figure:
    """A figure as it is shown; `value` is what ratios and differences are made of."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """One record and the ranking in which it stands."""

    record: Record
    ranking: Ranking

    def stage(self, name: str) -> Figure:
        stage = self.record.stages.get(name)
        if stage is None or not stage.seconds:
            raise Fault(f"{self.record.run} has no seconds of {name}")
        ordered = sorted(stage.seconds)
        return _seconds(ordered[len(ordered) // 2])

    def peak(self, stage: str, kind: str = "allocated_bytes") -> Figure:
        found = self.record.stages.get(stage)
        return _bytes(getattr(found.peak, kind) if found else None)

    def kernels(self, kind: str) -> Figure:
        """Seconds of the profiled step that its kernels of one kind took."""
        profile = profiles_of(self.ranking).get(self.record.run)
        if profile is None:
            raise Fault(f"{self.record.run} has no profile")
        seconds = profile.seconds()
        return _seconds(sum(seconds[part] for part in KERNELS[kind]))

    def video_of(self, steps: int) -> Figure:
        """A video of more steps than were run, as what they add: an estimate."""
        shown = self.ranking.timing(self.record)
        video, step = shown.video_s, shown.step_s
        if video is None or step is None:
            return Figure(tables.MISSING)
        return _seconds(video + (steps - int(self.record.generation["steps"] or 0)) * step)

    def kernel_share(self, kind: str) -> Figure:
        total = sum(self.kernels(each).value or 0.0 for each in KERNELS)
        return _share((self.kernels(kind).value or 0.0) / total)

    def attention_rate(self) -> Figure:
        """FLOP of a step's attention over the seconds that its kernels took."""
        work, seconds = self.record.work, self.kernels("attention").value
        if work is None or not seconds:
            raise Fault(f"{self.record.run} has no FLOP count")
        rate = work.attention_flop / seconds
        return Figure(f"{rate / 1e12:.0f} TFLOP/s", rate)

    def tflop(self, field: str) -> Figure:
        value = None if self.record.work is None else getattr(self.record.work, field)
        return Figure(tables.MISSING if value is None else f"{value / 1e12:.0f} TFLOP", value)

    def quality(self, name: str, form: str) -> Figure:
        metric = self.record.quality.get(name)
        return (
            Figure(tables.MISSING) if metric is None else Figure(form % metric.value, metric.value)
        )

    def interval(self, name: str, digits: int) -> Figure:
        metric = self.record.quality.get(name)
        if metric is None or metric.summary is None or metric.summary.low is None:
            raise Fault(f"{self.record.run} has no interval of {name}")
        low, high = metric.summary.low, metric.summary.high
        return Figure(f"[{low:.{digits}f}, {high:.{digits}f}]")

    def speed(self) -> Figure:
        if self.record is self.ranking.reference:
            return Figure("reference", 1.0)
        ratio = self.ranking.timing(self.record).speed_up
        if ratio is None:
            return Figure(tables.MISSING)
        return Figure(f"{ratio.value:.2f}x", ratio.value)

    def speed_interval(self) -> Figure:
        ratio = self.ranking.timing(self.record).speed_up
        samples = self.record.latency or self.record.step
        if ratio is None or samples is None or samples.n < tables.FEW:
            raise Fault(f"{self.record.run} has no interval of its speed-up")
        return Figure(f"[{ratio.low:.2f}, {ratio.high:.2f}]")

    def verdict(self) -> Figure:
        if self.record is self.ranking.reference:
            return Figure("reference")
        judged = self.ranking.judged.get(self.record.run)
        return Figure(judged.text if judged else tables.MISSING)

    def because(self) -> Figure:
        judged = self.ranking.judged.get(self.record.run)
        return Figure((judged.because if judged else "") or "no loss")

    def distance(self) -> Figure:
        """Whether the videos stayed close to the reference's, in words."""
        judged = self.ranking.judged.get(self.record.run)
        return Figure((judged.distance if judged else "") or tables.MISSING)

    def computed(self) -> Figure:
        """Denoise steps that were computed, by the FLOPs of the blocks; all of them uncached."""
        found, made = self.record.computed, self.record.generation.get("steps")
        value = found.steps if found else float(made or 0)
        return Figure(f"{value:.3g}", value)

    def by_computed(self) -> Figure:
        """Seconds of denoising over the steps that were computed."""
        steps = self.computed().value
        return _seconds((self.stage("denoise").value or 0.0) / steps if steps else None)

    def gain(self, metric: str, digits: int) -> Figure:
        """The mean paired difference from the reference, positive where better."""
        judged = self.ranking.judged.get(self.record.run)
        tests = [t.comparison for t in judged.tests] if judged else []
        for comparison in tests:
            if comparison.metric == metric:
                low, high = comparison.low, comparison.high
                text = f"{comparison.gain:+.{digits}f}"
                if low is not None and high is not None:
                    text += f" [{low:.{digits}f}, {high:.{digits}f}]"
                return Figure(text, comparison.gain)
        raise Fault(f"{self.record.run} was not tested in {metric}")

    def throttled(self) -> Figure:
        gauges = self.record.gauges
        share = gauges.throttled.get("power cap", 0.0) if gauges else 0.0
        return Figure(f"{share:.0%}", share)


KERNELS: dict[str, tuple[Class, ...]] = {
    "attention": ("attention",),
    "gemm": ("gemm",),
    "other": ("pointwise", "movement"),
}


def _seconds(value: float | None) -> Figure:
    if value is None:
        return Figure(tables.MISSING)
    return Figure(f"{value:,.0f} s" if value >= 1000 else tables.time_text(value), value)


def _bytes(value: float | None) -> Figure:
    return Figure(tables.bytes_text(None if value is None else int(value)), value)


def _error(growth: ErrorGrowth | None) -> Figure:
    """The mean over steps of the error that one step makes from the reference's latents."""
    if growth is None:
        return Figure(tables.MISSING)
    value = sum(growth.forced) / len(growth.forced)
    return Figure(f"{value:.2%}", value)


def _share(value: float | None) -> Figure:
    return Figure(tables.MISSING if value is None else f"{value:.0%}", value)


def _clock(record: Record) -> Figure:
    mhz = record.gauges.sm_clock_mhz if record.gauges else None
    return Figure(tables.MISSING if mhz is None else f"{mhz:,.0f} MHz", mhz)


FIGURES: dict[str, Callable[[Row], Figure]] = {
    "video": lambda row: _seconds(row.ranking.timing(row.record).video_s),
    "video-of-50": lambda row: row.video_of(50),
    "step": lambda row: _seconds(row.ranking.timing(row.record).step_s),
    "denoise": lambda row: row.stage("denoise"),
    "decode": lambda row: row.stage("decode"),
    "first-call": lambda row: _seconds(row.record.first_call_s),
    "build": lambda row: _seconds(row.record.facts.get("engine_build_s")),
    "speed-up": Row.speed,
    "speed-up-interval": Row.speed_interval,
    "peak": lambda row: _bytes(row.record.held_bytes(row.record.peak())),
    "reserved": lambda row: _bytes(row.record.peak().reserved_bytes),
    "allocated": lambda row: _bytes(row.record.peak().allocated_bytes),
    "denoise-peak": lambda row: row.peak("denoise"),
    "decode-peak": lambda row: row.peak("decode"),
    "needed": lambda row: _bytes(row.record.facts.get("needed_bytes")),
    "fragments": lambda row: _bytes(row.record.facts.get("fragments_bytes")),
    "weights": lambda row: _bytes(row.record.weights_bytes),
    "attention": lambda row: row.kernels("attention"),
    "gemm": lambda row: row.kernels("gemm"),
    "other": lambda row: row.kernels("other"),
    "attention-share": lambda row: row.kernel_share("attention"),
    "gemm-share": lambda row: row.kernel_share("gemm"),
    "other-share": lambda row: row.kernel_share("other"),
    "attention-rate": Row.attention_rate,
    "attention-flop": lambda row: row.tflop("attention_flop"),
    "gemm-flop": lambda row: row.tflop("product_flop"),
    "flop": lambda row: row.tflop("flop"),
    "throttled": Row.throttled,
    "clock": lambda row: _clock(row.record),
    "density": lambda row: _share(row.record.facts.get("attention_density")),
    "density-of-sparse-steps": lambda row: _share(
        row.record.facts.get("attention_density_of_sparse_steps")
    ),
    "step-error": lambda row: _error(row.record.error_growth),
    "calibration": lambda row: _seconds(row.record.facts.get("calibration_s")),
    "calibration-device": lambda row: _bytes(row.record.facts.get("calibration_device_bytes")),
    "calibration-host": lambda row: _bytes(row.record.facts.get("calibration_host_bytes")),
    "psnr": lambda row: row.quality("psnr", "%.1f dB"),
    "psnr-interval": lambda row: row.interval("psnr", 1),
    "ssim": lambda row: row.quality("ssim", "%.4f"),
    "latent-error": lambda row: row.quality("latent_error", "%.4f"),
    "sharpness": lambda row: row.quality("sharpness", "%+.3f"),
    "contrast": lambda row: row.quality("contrast", "%+.3f"),
    "colour": lambda row: row.quality("colour", "%.3f"),
    "motion-amount": lambda row: row.quality("motion_amount", "%+.4f"),
    "motion-direction": lambda row: row.quality("motion_direction", "%+.4f"),
    "motion-rhythm": lambda row: row.quality("motion_rhythm", "%+.4f"),
    "computed": Row.computed,
    "by-computed": Row.by_computed,
    "library": lambda row: Figure(row.record.computed.library if row.record.computed else "-"),
    "lpips": lambda row: row.quality("lpips", "%.4f"),
    "clip": lambda row: row.quality("clip_score", "%.2f"),
    "clip-gain": lambda row: row.gain("clip_score", 2),
    "fvd": lambda row: row.quality("fvd_reference", "%.2f"),
    "adherence": lambda row: _share(row.quality("adherence", "%g").value),
    "verdict": Row.verdict,
    "distance": Row.distance,
    "expects": lambda row: Figure(str(row.record.recipe.expects or tables.MISSING)),
    "because": Row.because,
    "videos": lambda row: Figure(f"{row.record.videos:,}", row.record.videos),
    "n": lambda row: Figure(str(len(row.record.latency_s) or sum(map(len, row.record.step_s)))),
    "date": lambda row: Figure(row.record.started[:10]),
    "device": lambda row: Figure(row.record.environment.device_name),
    "recipe": lambda row: Figure(f"`{row.record.recipe.name}`"),
}


@functools.cache
def _rankings(folder: str) -> list[Ranking]:
    places = [PUBLISHED / folder / "runs", PUBLISHED / folder]
    found, unreadable = store.read_all(store.find([next(p for p in places if p.exists())]))
    if unreadable:
        raise Fault(unreadable[0])
    return ranked.rankings(found)


def row_of(folder: str, recipe: str, fields: dict[str, str]) -> Row:
    """The one record of a folder with this recipe and these fields. Raises Fault otherwise.

    A recipe that has since come to lie in a folder of recipes is found by its last word too:
    `half-steps` is `cache/half-steps` of another sitting.
    """
    if not (PUBLISHED / folder).is_dir():
        raise Fault(f"there is no results/published/{folder}")
    found = [
        Row(record, ranking)
        for ranking in _rankings(folder)
        for record in ranking.records
        if recipe in (record.recipe.name, record.recipe.name.rpartition("/")[2])
        and all(_field(record, name) == value for name, value in fields.items())
    ]
    exact = [row for row in found if row.record.recipe.name == recipe]
    found = exact or found
    if len(found) != 1:
        raise Fault(f"results/published/{folder} has {len(found)} records {recipe} {fields or ''}")
    return found[0]


def _field(record: Record, dotted: str) -> str:
    value: object = record.recipe.model_dump()
    for part in dotted.split("."):
        if value is None:  # a section that this recipe has not
            break
        if not isinstance(value, dict) or part not in value:
            raise Fault(f"recipes have no field {dotted}")
        value = value[part]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_json(path: str, dotted: str, form: str) -> Figure:
    try:
        value = json.loads((PUBLISHED / path).read_text(encoding="utf-8"))
        for part in dotted.split("."):
            name, _, wanted = part.partition("[")
            value = value[int(name)] if isinstance(value, list) else value[name]
            if wanted:
                fields = dict(field.split("=") for field in wanted.rstrip("]").split(","))
                (value,) = [x for x in value if all(str(x[k]) == v for k, v in fields.items())]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise Fault(f"results/published/{path} {dotted}: {type(error).__name__} {error}") from None
    if isinstance(value, list):
        ordered = sorted(value)
        middle = len(ordered) // 2
        value = (ordered[middle] + ordered[~middle]) / 2
    forms: dict[str, Callable[[float], Figure]] = {
        "s": _seconds,
        "GiB": _bytes,
        "%": lambda v: Figure(f"{v:.1%}", v),
        "percent": lambda v: Figure(f"{v:.1f}", v),
        "ratio": lambda v: Figure(f"{v:.3f}", v),
        "error": lambda v: Figure(f"{v:.4f}", v),
        "MiB": lambda v: Figure(f"{v / 2**20:.2f} MiB", v),
        "count": lambda v: Figure(f"{v:,.0f}", v),
        "dB": lambda v: Figure(f"{v:.1f} dB", v),
        "TFLOP/s": lambda v: Figure(f"{v / 1e12:,.0f} TFLOP/s", v),
    }
    if form not in forms:
        raise Fault(f"{form!r} is not a form; there are {', '.join(forms)}")
    return forms[form](value)


def evaluate(expression: str) -> Figure:
    """The figure of an expression. Raises Fault."""
    if AGAINST in expression:
        return _paired(*expression.split(AGAINST, 1))
    first, *rest = re.split(r" ([/+-]) ", expression)
    if not rest:
        return _term(first.split())
    left = _term(first.split())
    value = _value(left, expression)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        other = _value(_term(_completed(term.split(), first.split())), expression)
        if sign == "/":
            if len(rest) > 2 or not other:
                raise Fault(f"{expression!r} is no ratio of two figures")
            return Figure(f"{value / other:.2f}", value / other)
        value += other if sign == "+" else -other
    unit = left.text.rpartition(" ")[2]
    if unit in ("ms", "s"):
        return _seconds(value)
    if unit.endswith("iB"):
        return _bytes(value)
    if unit != "dB" and not NUMBER.fullmatch(left.text):
        raise Fault(f"{expression!r}: figures such as {left.text} are not added up")
    return Figure(f"{value:.2f}", value)


def _paired(expression: str, other: str) -> Figure:
    """The difference of a metric from another recipe's of the folder, paired by video."""
    named = expression.split()
    if len(named) != 3:
        raise Fault(f"{expression!r} is not a folder, a recipe and a metric")
    folder, recipe, metric = named
    rows = [row_of(folder, name, {}).record.quality.get(metric) for name in (recipe, other)]
    own, theirs = ((row.samples if row else None) or [] for row in rows)
    if not own or len(own) != len(theirs):
        raise Fault(f"{expression!r}: {other} has no {metric} of the same videos")
    gap = paired_difference(own, theirs)
    if gap.low is None or gap.high is None:
        raise Fault(f"{expression!r}: too few videos for an interval")
    text = f"{gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"
    return Figure(f"**{text}**" if gap.low > 0 or gap.high < 0 else text, gap.mean)


def _value(figure: Figure, expression: str) -> float:
    if figure.value is None:
        raise Fault(f"{expression!r}: a side has no value")
    return figure.value


def _completed(words: list[str], first: list[str]) -> list[str]:
    """A term with the folder, recipe and fields that it leaves out taken over from the first."""
    given = [word for word in words if "=" not in word]
    if len(given) >= 3 or CONSTANT.fullmatch(words[0]) or words[0].endswith(".json"):
        return words
    named = [word for word in first if "=" not in word]
    fields = [w for w in words if "=" in w] or [w for w in first if "=" in w]
    return [*named[: 3 - len(given)], *given, *fields]


def _term(words: list[str]) -> Figure:
    if len(words) == 1 and (constant := CONSTANT.fullmatch(words[0])):
        return _bytes(float(constant[1]) * 2**30)
    if words and words[0].endswith(".json") and len(words) == 3:
        return _of_json(*words)
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    named = [word for word in words if "=" not in word]
    if len(named) != 3:
        raise Fault(f"{' '.join(words)!r} is not a folder, a recipe and a figure")
    folder, recipe, figure = named
    if figure not in FIGURES:
        raise Fault(f"{figure!r} is not a figure; there are {', '.join(FIGURES)}")
    shown = FIGURES[figure](row_of(folder, recipe, fields))
    if shown.text == tables.MISSING and shown.value is None:
        raise Fault(f"{' '.join(words)}: the record has none")
    return shown
