"""README's chart: seconds a video of CogVideoX-2B on an H100, each bar with its verdict.

What was plotted is kept in the PNG's own metadata, so that it can be compared with the records.
"""

from __future__ import annotations

import json

from qbench.report import charts
from scripts.figures.values import ROOT, evaluate, row_of

FILE = ROOT / "docs" / "assets" / "cogvideox-2b-h100.png"
PLOTTED = "qbench figures"  # the name of the metadata
SPEED, QUALITY = "h100/videos", "h200/length"
ROWS = {
    "fast-cached": "fast-cached",
    "fast": "fast",
    "half-steps": "half the steps",
    "exact": "exact",
    "fp8-dynamic": "FP8, torchao",
    "int8-dynamic": "INT8, torchao",
    "bf16": "BF16, diffusers",
}
COLOURS: dict[str, str] = dict(charts.VERDICTS.items())


def plotted() -> list[list[object]]:
    """Words, seconds, their text, and the verdict of each bar, from top to bottom."""
    rows: list[list[object]] = []
    for recipe, words in ROWS.items():
        video = evaluate(f"{SPEED} {recipe} video")
        verdict = row_of(QUALITY, recipe, {}).verdict().text
        rows.append([words, video.value, video.text, verdict])
    return rows


def draw() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = plotted()
    figure, axes = plt.subplots(figsize=(8, 3.1), layout="constrained")
    for place, (_, seconds, text, verdict) in enumerate(rows):
        colour = COLOURS[str(verdict).rstrip("?")]
        axes.barh(place, float(str(seconds)), color=colour, height=0.68)
        axes.text(float(str(seconds)) + 0.3, place, f"{text}  {verdict}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [str(row[0]) for row in rows], fontsize=10)
    axes.invert_yaxis()
    axes.set_xlim(0, max(float(str(row[1])) for row in rows) * 1.2)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.set_title(
        "CogVideoX-2B on one H100: seconds a video (49x480x720); verdict on clips of 49x256x256",
        fontsize=9.5,
        loc="left",
    )
    FILE.parent.mkdir(parents=True, exist_ok=True)
    charts.save_png(figure, FILE, {PLOTTED: json.dumps(rows)})
    plt.close(figure)


def faults() -> list[str]:
    """A line if the chart shows something else than the records say."""
    from PIL import Image

    with Image.open(FILE) as image:
        shown = json.loads(image.info.get(PLOTTED, "null"))
    if shown == json.loads(json.dumps(plotted())):
        return []
    return [f"{FILE.relative_to(ROOT)}: drawn from other records; --write draws it anew"]
