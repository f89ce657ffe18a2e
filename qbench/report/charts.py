"""Charts of a ranking, each as PNG and SVG."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench import escape, textfile
from qbench.report import labels, tables
from qbench.results.profiles import profiles_of
from qbench.results.ranking import Ranking, label
from qbench.results.record import Record

if TYPE_CHECKING:
    from qbench.meters.profile import Class
    from qbench.recipe.schema import Verdict

# Okabe and Ito's palette, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
RED, SKY, PINK, BLACK = "#D55E00", "#56B4E9", "#CC79A7", "#000000"
VERDICTS: dict[Verdict, str] = {
    "indistinguishable": GREEN, "drift": BLUE, "unverified": PINK, "degraded": ORANGE,
    "broken": RED,
}  # fmt: skip
Plot = Any  # of matplotlib: figures, axes, pyplot itself
DPI = 120
TINTS = 15  # of each colour in a picture
LINES = 8  # variants whose errors are told apart in one chart
STAGES = {"text_encode": GREY, "denoise": BLUE, "decode": ORANGE}
KINDS: dict[Class, tuple[str, str]] = {
    "attention": ("attention", BLUE),
    "gemm": ("GEMM, convolutions", ORANGE),
    "pointwise": ("norms and pointwise", GREEN),
    "movement": ("memory movement", GREY),
}
LABELLED, BARS = 40, 30  # points that get a name; bars that fit on a page
SPANNED = 1000  # points whose intervals can be told apart
NAME = 60  # characters of a name
LONGEST = 2.5  # bars past so many times the median are cut, and say how long they are


def draw(ranking: Ranking, out: Path, suffix: str, only: str | None = None) -> list[Path]:
    """The charts that this ranking has figures for, or one of them. Returns the PNG files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Plot = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titley": 1.0,  # where it is anyway: finding that out takes a quarter of the drawing
        "svg.hashsalt": "qbench",
        "svg.fonttype": "none",
    }
    sound = [r for r in ranking.records if r.status == "ok" and (r.latency or r.step)]
    made = []
    with plt.rc_context(style), warnings.catch_warnings():
        # A name may have letters that the font lacks: they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        for name, plot in (
            ("speed-quality", _speed_quality),
            ("error-by-step", _error_by_step),
            ("latency-by-stage", _latency),
            ("step-by-work", _work),
            ("memory-by-stage", _memory),
            ("size", _size),
        ):
            if only not in (None, name):
                continue
            figure = plot(plt, ranking, sound)
            if figure is None:
                continue
            figure.text(0.01, 0.01, escape.chart(ranking.title()), fontsize=7, color=GREY)
            path = out / f"{name}{suffix}.png"
            save_png(figure, path)
            with textfile.replaced(path.with_suffix(".svg")) as partial:
                figure.savefig(partial, metadata={"Date": None})
            plt.close(figure)
            made.append(path)
    return made


def save_png(figure: Plot, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """With a palette: a chart has few colours, and is a third as large so. texts: its metadata."""
    import io

    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format="rgba")
    pixels = drawn.getvalue()
    width = int(figure.get_figwidth() * DPI)
    size = (width, len(pixels) // (4 * width))
    palette = Image.new("P", (1, 1))
    palette.putpalette(_palette())
    picture = Image.frombytes("RGBA", size, pixels).convert("RGB")
    drawn_in = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    info = PngInfo()
    for name, text in (texts or {}).items():
        info.add_text(name, text)
    with textfile.replaced(path) as partial:
        # The two levels above take five times as long for 10 %.
        drawn_in.save(partial, compress_level=7, pnginfo=info)


def _palette() -> list[int]:
    """R, G, B of every colour that charts have, whole and thinned towards white at its edges.

    A palette found by the picture itself goes to what fills it, and lines are thin.
    """
    colours = (BLUE, ORANGE, GREEN, GREY, RED, SKY, PINK, BLACK)
    found = []
    for colour in colours:
        whole = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        for step in range(TINTS + 1):
            found += [round(255 + (part - 255) * step / TINTS) for part in whole]
    return found


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points that none beats in both: lower first figure, higher second."""
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    best = float("-inf")
    for i in order:
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def _speed_quality(plt: Plot, ranking: Ranking, sound: list[Record]) -> Plot:
    shown = [r for r in sound if "psnr" in r.quality and ranking.timing(r).video_s]
    if not shown:
        return None
    seconds = [ranking.timing(r).video_s or 0.0 for r in shown]
    figure, axes = _figure(plt, 5.0, left=0.75)
    points = [(x, r.quality["psnr"].value) for x, r in zip(seconds, shown, strict=True)]
    means = [r.quality["psnr"].summary for r in shown]
    spans = [(mean.low, mean.high) if mean else (None, None) for mean in means]
    for axis, (low, high) in (
        ("x", _errors([span(r, ranking) for r in shown], seconds)),
        ("y", _errors(spans, [y for _, y in points])),
    ):
        if len(points) > SPANNED:
            continue
        xs, ys = zip(*points, strict=True)
        axes.errorbar(xs, ys, **{f"{axis}err": (low, high)}, fmt="none", ecolor=GREY, lw=1)
    verdicts = [ranking.judged[r.run].verdict if r.run in ranking.judged else None for r in shown]
    # What is broken wins nothing, and a noise floor is no variant.
    running = [
        said != "broken" and not r.recipe.noise_floor
        for said, r in zip(verdicts, shown, strict=True)
    ]
    whole = list(itertools.compress(points, running))
    if whole:
        front = [whole[i] for i in pareto(whole)]
        axes.step(*zip(*front, strict=True), where="post", color=GREY, lw=1.2, label="Pareto front")
    for verdict, colour in [*VERDICTS.items(), (None, GREY)]:
        some = [point for point, said in zip(points, verdicts, strict=True) if said == verdict]
        if some:
            axes.scatter(*zip(*some, strict=True), color=colour, zorder=3, s=28, label=verdict)
    if ranking.reference is not None:
        latency = ranking.timing(ranking.reference).video_s
        if latency is not None:
            axes.axvline(latency, color=BLACK, ls="--", lw=1, label="reference's latency")
    axes.set_xscale("log")
    _plain_log_ticks(axes, [x for x, _ in points])
    axes.set_xlabel("seconds a video (95 %; left is faster)")
    axes.set_ylabel("PSNR against the reference, dB (mean, 95 %)")
    axes.set_title("Speed against quality")
    _legend_above(axes)
    axes.grid(alpha=0.25)
    if len(shown) <= LABELLED:
        labels.place(axes, points, [_name(r, ranking) for r in shown])
    return figure


def _error_by_step(plt: Plot, ranking: Ranking, sound: list[Record]) -> Plot:
    """How errors accumulate (solid) beside the error of each step alone (dotted)."""
    shown = [r for r in sound if r.error_growth and max(r.error_growth.free) > 0]
    shown.sort(key=lambda r: r.error_growth.free[-1] if r.error_growth else 0.0)
    if not shown:
        return None
    if len(shown) > LINES:  # spread from the closest to the furthest
        shown = [shown[round(i * (len(shown) - 1) / (LINES - 1))] for i in range(LINES)]
    figure, axes = _figure(plt, 5.0, left=0.75)
    figure.subplots_adjust(right=0.76)
    for record, colour in zip(
        reversed(shown), (RED, ORANGE, PINK, BLACK, BLUE, SKY, GREEN, GREY), strict=False
    ):
        growth = record.error_growth
        if growth is None:
            continue
        steps = range(1, len(growth.free) + 1)
        axes.plot(steps, growth.free, color=colour, lw=1.6, label=_name(record, ranking))
        axes.plot(steps, growth.forced, color=colour, lw=1.2, ls=":")
    axes.set_yscale("log", nonpositive="mask")  # an error of zero is below any axis
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("denoise step")
    axes.set_ylabel("relative error of the latents")
    axes.set_title("Error by step (dotted: from the reference's latents, one step alone)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _plain_log_ticks(axes: Plot, values: list[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(values) * 0.8, max(values) * 1.5)


def _figure(plt: Plot, tall: float, left: float) -> tuple[Plot, Plot]:
    """Fixed margins in inches: a layout engine would take longer than all the drawing."""
    figure, axes = plt.subplots(figsize=(8, tall))
    figure.subplots_adjust(
        left=left / 8, right=1 - 0.25 / 8, bottom=0.8 / tall, top=1 - 0.45 / tall
    )
    return figure, axes


def _bars(plt: Plot, names: list[str]) -> tuple[Plot, Plot]:
    longest = max(map(len, names))
    figure, axes = _figure(plt, 1.6 + 0.32 * len(names), left=0.3 + min(0.085 * longest, 3.0))
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(names)), names)
    return figure, axes


def _latency(plt: Plot, ranking: Ranking, sound: list[Record]) -> Plot:
    import statistics

    shown = [r for r in sound if ranking.timing(r).seconds][:BARS]
    if not shown:
        return None
    names = [_name(r, ranking) for r in shown]
    figure, axes = _bars(plt, names)
    start = [0.0] * len(shown)
    for stage, colour in STAGES.items():
        widths = [
            # By the rule of every table: as long as the paired speed-up says.
            statistics.median(r.stages[stage].seconds) * ranking.timing(r).scale
            if stage in r.stages
            else 0.0
            for r in shown
        ]
        axes.barh(range(len(names)), widths, left=start, color=colour, label=stage)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    _cut(axes, start, tables.time_text)
    unit = shown[0].recipe.measure.unit
    _finish(axes, "Latency by stage", f"seconds a {unit} (median of each stage)", sound)
    return figure


def _work(plt: Plot, ranking: Ranking, sound: list[Record]) -> Plot:
    """Where a step goes: its time by class of kernel, as the profiler saw one step."""
    profiles = profiles_of(ranking)
    shown = [r for r in sound if r.run in profiles and ranking.timing(r).step_s][:BARS]
    if not shown:
        return None
    names = [_name(r, ranking) for r in shown]
    figure, axes = _bars(plt, names)
    start = [0.0] * len(shown)
    for kind, (text, colour) in KINDS.items():
        widths = [profiles[r.run].seconds()[kind] * 1000 for r in shown]
        axes.barh(range(len(names)), widths, left=start, color=colour, label=text)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    measured = [(ranking.timing(record).step_s or 0.0) * 1000 for record in shown]
    for i, length in enumerate(measured):
        axes.plot(2 * [length], [i - 0.4, i + 0.4], color="black")
    _cut(axes, measured, lambda length: tables.time_text(length / 1000))
    _finish(axes, "Where a step goes", "ms of kernels (black: the measured step)", sound)
    return figure


def _memory(plt: Plot, ranking: Ranking, sound: list[Record]) -> Plot:
    shown = sound[:BARS]
    if not shown:
        return None
    names = [_name(r, ranking) for r in shown]
    figure, axes = _bars(plt, names)
    peaks = {stage: [_held(r, stage) for r in shown] for stage in STAGES}
    scale, unit = _unit(max(max(sizes) for sizes in peaks.values()))
    for offset, (stage, sizes) in zip((-0.27, 0.0, 0.27), peaks.items(), strict=True):
        places = [i + offset for i in range(len(shown))]
        scaled = [size / scale for size in sizes]
        axes.barh(places, scaled, height=0.25, color=STAGES[stage], label=stage)
    gpu = shown[0].environment.device == "cuda"
    own = "reserved where CUDA graphs are" if _graphs(shown) else "engines' own not in it"
    what = f"allocated by torch; {own}" if gpu else "resident set of the process"
    _finish(axes, "Memory by stage", f"peak memory, {unit} ({what})", sound)
    return figure


def _held(record: Record, stage: str) -> int:
    found = record.stages.get(stage)
    return (found and record.held_bytes(found.peak)) or 0


def _unit(largest: int) -> tuple[int, str]:
    """Bytes in the unit that an axis up to `largest` bytes is read in, and its name."""
    return (2**30, "GiB") if largest >= 2**30 else (2**20, "MiB")


def _graphs(shown: list[Record]) -> bool:
    return any(record.recipe.variant.captures_graphs for record in shown)


def _size(plt: Plot, ranking: Ranking, sound: list[Record]) -> Plot:
    shown = [r for r in sound if r.weights_bytes][:BARS]
    if not shown:
        return None
    names = [_name(r, ranking) for r in shown]
    figure, axes = _bars(plt, names)
    stored = [r.weights_bytes or 0 for r in shown]
    scale, unit = _unit(max(stored))
    bars = axes.barh(range(len(names)), [size / scale for size in stored], color=BLUE)
    axes.bar_label(bars, [tables.bytes_text(size) for size in stored], padding=4, fontsize=8)
    axes.margins(x=0.12)
    _finish(axes, "Size", f"denoiser's weights as stored, {unit}", sound)
    return figure


def _cut(axes: Plot, lengths: list[float], text: Callable[[float], str]) -> None:
    """End the axis where a few long bars would leave the others no room."""
    import statistics

    end = LONGEST * statistics.median(lengths)
    if max(lengths) <= end:
        return
    axes.set_xlim(0, end)
    for i, length in enumerate(lengths):
        if length > end:
            axes.text(end * 0.99, i, f"{text(length)} →", ha="right", va="center", color="white")


def _finish(axes: Plot, title: str, xlabel: str, sound: list[Record]) -> None:
    """First row on top, title, and a legend above the bars where they have several meanings."""
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)
    cut = "" if len(sound) <= BARS else f" (the first {BARS} of {len(sound)})"
    place = axes.get_position()  # the title from the page's left, clear of the legend
    axes.set_title(title + cut, x=(0.012 - place.x0) / place.width)
    if axes.get_legend_handles_labels()[1]:
        _legend_above(axes)


def _legend_above(axes: Plot) -> None:
    """Beside the title, where no point and no bar can be."""
    axes.legend(
        frameon=False,
        ncols=8,
        loc="lower right",
        bbox_to_anchor=(1.03, 1),
        fontsize=8,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=0.9,
    )


def _name(record: Record, ranking: Ranking) -> str:
    """The record's name, of which matplotlib reads nothing as mathematics."""
    return escape.chart(escape.clipped(label(record, ranking), NAME))


Span = tuple[float | None, float | None]


def span(record: Record, ranking: Ranking) -> Span:
    """The interval of the seconds that are shown: of the pairs, or of the run's own median."""
    shown = ranking.timing(record)
    ratio, seconds = shown.speed_up, shown.video_s
    if ratio and seconds and record.paired_speed_up and ratio.low > 0:
        return seconds * ratio.value / ratio.high, seconds * ratio.value / ratio.low
    return (record.latency.low, record.latency.high) if record.latency else (None, None)


def _errors(spans: list[Span], values: list[float]) -> tuple[list[float], list[float]]:
    """Lengths of the error bars below and above each value."""
    pairs = list(zip(spans, values, strict=True))
    low = [value - low if low is not None else 0.0 for (low, _), value in pairs]
    high = [high - value if high is not None else 0.0 for (_, high), value in pairs]
    return [max(v, 0.0) for v in low], [max(v, 0.0) for v in high]
