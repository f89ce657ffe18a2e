"""A history as lines for a terminal, and as a chart."""

from __future__ import annotations

from pathlib import Path

from qbench import escape, textfile
from qbench.decisions import figures
from qbench.decisions.changes import Change
from qbench.decisions.figures import Figure
from qbench.decisions.history import History, Point, Step

ROWS = 60  # points that are listed, the latest
SERIES = 20  # that are drawn
NAMED = 4  # changes of software named beside a point


def lines(made: History) -> list[str]:
    """Plain text; what comes from records is not escaped yet."""
    said: list[str] = []
    for one in made.series:
        figure = figures.find(one.figure, "")
        said.append(f"{one.recipe}: {one.figure} of {one.model} on {one.machine}")
        steps = {step.at: step for step in one.steps}
        first = max(0, len(one.points) - ROWS)
        if first:
            said.append(f"  {first} earlier ones")
        for place, point in enumerate(one.points[first:], first):
            if place in steps:
                said.append(f"  -- {_step(steps[place], figure)}")
            said.append(f"  {_point(point, figure)}")
        if not one.steps and len(one.points) >= 6:
            said.append("  no change point")
        said += [f"  note: {note}" for note in one.notes]
    return said + [f"note: {note}" for note in made.notes]


def _point(point: Point, figure: Figure) -> str:
    text = f"{point.started[:16]} {point.commit or 'unknown'}: {figure.text(point.value)}"
    if point.low is not None and point.high is not None:
        text += f" [{figure.text(point.low)}, {figure.text(point.high)}]"
    return f"{text}, n = {point.n}{_changed(point.changed)}"


def _changed(changes: tuple[Change, ...]) -> str:
    """Versions of libraries; that the commit is another can be seen."""
    told = [str(change) for change in changes if change.kind == "software"]
    if not told:
        return ""
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return f" ({', '.join(told[:NAMED])}{more})"


def _step(step: Step, figure: Figure) -> str:
    text = f"change point: {figure.text(step.before)} -> {figure.text(step.after)}"
    if step.before:
        text += f" ({step.after / step.before - 1:+.1%})"
    with_it = [str(change) for change in step.software[:NAMED]]
    return f"{text}, p = {step.p:.3g}" + (f", with {', '.join(with_it)}" if with_it else "")


def draw(made: History, path: Path) -> Path:
    """One chart a series: runs with their intervals, changes of software, change points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from qbench.report.charts import BLUE, GREY, RED

    shown = made.series[:SERIES]
    figure_, grid = plt.subplots(
        len(shown), 1, figsize=(8, 2.6 * len(shown)), layout="constrained", squeeze=False
    )
    for axes, one in zip(grid[:, 0], shown, strict=True):
        known = figures.find(one.figure, "")
        places, values = range(len(one.points)), [point.value for point in one.points]
        below = [p.value - p.low if p.low is not None else 0.0 for p in one.points]
        above = [p.high - p.value if p.high is not None else 0.0 for p in one.points]
        spread = [[max(x, 0.0) for x in ends] for ends in (below, above)]
        axes.errorbar(places, values, yerr=spread, fmt="o", color=BLUE, ms=4, lw=1, capsize=2)
        for place, point in enumerate(one.points):
            if any(change.kind == "software" for change in point.changed):
                axes.axvline(place - 0.5, color=GREY, lw=0.8, ls=":")
        ends = [0, *(step.at for step in one.steps), len(one.points)]
        for step in one.steps:
            axes.axvline(step.at - 0.5, color=RED, lw=1.4)
            axes.annotate(
                f"p = {step.p:.2g}", (step.at - 0.5, 1), xycoords=("data", "axes fraction"),
                xytext=(3, -10), textcoords="offset points", fontsize=8, color=RED,
            )  # fmt: skip
        levels = [one.steps[0].before, *(step.after for step in one.steps)] if one.steps else []
        for level, start, stop in zip(levels, ends, ends[1:], strict=False):
            axes.hlines(level, start - 0.5, stop - 0.5, color=RED, lw=0.8, alpha=0.6)
        axes.set_title(
            escape.chart(escape.clipped(f"{one.recipe}: {one.figure}, {one.machine}", 90)),
            fontsize=10, loc="left",
        )  # fmt: skip
        axes.set_ylabel(escape.chart(one.unit or known.name), fontsize=9)
        axes.set_xticks(list(places)[:: max(1, len(one.points) // 12)])
        names = [_short(point) for point in one.points][:: max(1, len(one.points) // 12)]
        axes.set_xticklabels(names, fontsize=7, rotation=20, ha="right")
        axes.spines[["top", "right"]].set_visible(False)
    with textfile.replaced(path) as partial:
        figure_.savefig(partial, format="png", dpi=120, metadata={"Software": ""})
    plt.close(figure_)
    return path


def _short(point: Point) -> str:
    return escape.chart(f"{point.started[:10]} {(point.commit or '')[:7]}".strip())
