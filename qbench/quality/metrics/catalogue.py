"""The table of metrics: qbench's own, and those of installed packages that offer more."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import assert_never

from qbench.errors import InputError, Mistakes, nearest
from qbench.pipelines.known import Model
from qbench.quality.metrics import needs
from qbench.quality.metrics.base import Column, MetricSpec
from qbench.quality.statistics import Metric
from qbench.recipe.schema import Margin, Quality

GROUP = "qbench.metrics"  # entry points, each a MetricSpec named as the entry
SMALL_WORLD = "valid for the bundled models only, not comparable with published scores"
FRAMES = "frames in [0, 1]"
PAIRED = "frames in [0, 1], the reference's of the same prompt and noise"
FEW = 256  # videos below which a Fréchet distance says more about n than about quality
HERE = "qbench.quality.metrics"

_OWN = (
    MetricSpec(
        name="psnr",
        unit="dB",
        better="higher",
        range="[0, 100], capped",
        what="closeness to the reference's video",
        reads=PAIRED,
        source="10 log10 of 1 over the mean squared error of the whole video",
        module=f"{HERE}.fidelity",
        paired=True,
        column=Column("PSNR", "{:.1f} dB"),
        # One level of an 8-bit display, root mean square: the videos look the same.
        margin=Margin(size=48.13),
    ),
    MetricSpec(
        name="ssim",
        unit="0-1",
        better="higher",
        range="[-1, 1]",
        what="structural similarity to the reference's video",
        reads=PAIRED,
        source="Wang et al. 2004, window 11, sigma 1.5",
        module=f"{HERE}.fidelity",
        paired=True,
        column=Column("SSIM", "{:.4f}"),
    ),
    MetricSpec(
        name="lpips",
        unit="distance",
        better="lower",
        range="[0, about 1]",
        what="perceptual distance to the reference's video",
        reads=PAIRED,
        source="Zhang et al. 2018, version 0.1, mean over frames",
        module=f"{HERE}.lpips",
        needs=needs.lpips,
        networks=("lpips",),
        paired=True,
        column=Column("LPIPS", "{:.4f}"),
    ),
    MetricSpec(
        name="latent_error",
        unit="relative",
        better="lower",
        range="[0, inf)",
        what="final latents against the reference's",
        reads="final latents",
        source="norm of the difference over the reference's norm",
        module=f"{HERE}.fidelity",
        paired=True,
    ),
    MetricSpec(
        name="sharpness",
        unit="log ratio",
        better="zero",
        range="around 0",
        what="energy of gradients per variance against the reference's; below 0 is a blur",
        reads=PAIRED,
        source="half the log of mean squared differences of neighbours over the variance",
        module=f"{HERE}.appearance",
        paired=True,
        margin=Margin(size=0.05),  # a blur of sigma 0.3 pixels
        sees=frozenset({"picture"}),
    ),
    MetricSpec(
        name="contrast",
        unit="log ratio",
        better="zero",
        range="around 0",
        what="standard deviation of luma within frames against the reference's",
        reads=PAIRED,
        source="log ratio of standard deviations, Rec. 709 luma",
        module=f"{HERE}.appearance",
        paired=True,
        margin=Margin(size=0.05),  # 5 % of contrast
        sees=frozenset({"picture"}),
    ),
    MetricSpec(
        name="colour",
        unit="0-1",
        better="zero",
        range="[0, 1.73]",
        what="distance of the distribution of colours from the reference's",
        reads=PAIRED,
        source="2-Wasserstein distance of Gaussians over RGB, Dowson and Landau 1982",
        module=f"{HERE}.appearance",
        paired=True,
        margin=Margin(size=0.015),  # four levels of 8 bits in one channel
        sees=frozenset({"picture"}),
        away=True,
    ),
    MetricSpec(
        name="motion_amount",
        unit="log ratio",
        better="zero",
        range="around 0",
        what="change from frame to frame against the reference's; below 0 is slower or still",
        reads=PAIRED,
        source="log ratio of root mean square differences of consecutive frames",
        module=f"{HERE}.motion",
        needs=functools.partial(needs.frames, 2),
        paired=True,
        margin=Margin(size=0.1),  # a tenth faster or slower
        sees=frozenset({"motion"}),
    ),
    MetricSpec(
        name="motion_direction",
        unit="cosine - 1",
        better="zero",
        range="[-2, 0]",
        what="likeness of movements to the reference's, region by region; -2 is reversed",
        reads=PAIRED,
        source="cosine of gradient times change over time (Horn and Schunck 1981), less 1",
        module=f"{HERE}.motion",
        needs=functools.partial(needs.frames, 2),
        paired=True,
        margin=Margin(size=0.1),
        sees=frozenset({"motion"}),
        away=True,
    ),
    MetricSpec(
        name="motion_rhythm",
        unit="difference",
        better="zero",
        range="around 0",
        what="unevenness of change over time against the reference's; above 0 judders",
        reads=PAIRED,
        source="difference of coefficients of variation of the steps' mean absolute changes",
        module=f"{HERE}.motion",
        needs=functools.partial(needs.frames, 3),
        paired=True,
        margin=Margin(size=0.05),
        sees=frozenset({"motion"}),
    ),
    MetricSpec(
        name="clip_score",
        unit="0-100",
        better="higher",
        range="[0, 100]",
        what="fit of frames and prompt, mean over frames",
        reads=f"{FRAMES}, resized and cropped as the model's own processor does; the prompt",
        source="Hessel et al. 2021, scaled as torchmetrics",
        module=f"{HERE}.clip_score",
        networks=("clip",),
        column=Column("CLIP", "{:.1f}"),
        margin=Margin(size=0.15, of="spread"),  # 0.5 of tiny-clip, whose videos differ by 3.3
        sees=frozenset({"content"}),
    ),
    MetricSpec(
        name="clip_consistency",
        unit="0-100",
        better="higher",
        range="[-100, 100]",
        what="likeness of neighbouring frames to CLIP",
        reads=FRAMES,
        source="cosine of consecutive CLIP embeddings, Esser et al. 2023",
        module=f"{HERE}.clip_score",
        networks=("clip",),
        margin=Margin(size=0.15, of="spread"),  # 0.5 of tiny-clip, whose videos differ by 3.3
    ),
    MetricSpec(
        name="fvd_reference",
        unit="distance",
        better="lower",
        range="[0, inf)",
        what="Fréchet distance to the reference's videos",
        reads="features of all videos, at least 2",
        source="Unterthiner et al. 2018",
        module=f"{HERE}.distances",
        needs=needs.fvd,
        networks=("fvd",),
        paired=True,
        per_video=False,
        column=Column("FVD", "{:.2f}"),
        few=FEW,
        sees=frozenset({"content"}),
    ),
    MetricSpec(
        name="kvd_reference",
        unit="distance",
        better="lower",
        range="around 0 and up",
        what="kernel distance to the reference's videos, unbiased: around 0 where there is none",
        reads="features of all videos, at least 2",
        source="Unterthiner et al. 2018; cubic kernel of Binkowski et al. 2018",
        module=f"{HERE}.distances",
        needs=needs.fvd,
        networks=("fvd",),
        paired=True,
        per_video=False,
        sees=frozenset({"content"}),
    ),
    MetricSpec(
        name="fvd_rendered",
        unit="distance",
        better="lower",
        range="[0, inf)",
        what="Fréchet distance to rendered clips of the same prompts",
        reads="features of all videos, at least 2",
        source="Unterthiner et al. 2018",
        module=f"{HERE}.distances",
        needs=needs.rendered,
        networks=("fvd",),
        per_video=False,
        few=FEW,
    ),
    MetricSpec(
        name="flicker",
        unit="0-1",
        better="lower",
        range="[0, 2]",
        what="what changes from frame to frame and back",
        reads=FRAMES,
        source="mean absolute second difference over time",
        module=f"{HERE}.temporal",
        margin=Margin(size=0.1, of="reference"),
    ),
    MetricSpec(
        name="adherence",
        unit="share",
        better="higher",
        range="[0, 1]",
        what="prompt adherence: videos that show all that the prompt names, by the probe",
        reads="17 frames of 64x64, larger squares shrunk to it",
        source="qbench's own probe of the rendered world",
        module=f"{HERE}.adherence",
        needs=needs.probe,
        networks=("probe",),
        column=Column("adherence", "{:.0%}"),
        margin=Margin(size=0.05),
        sees=frozenset({"content"}),
    ),
)


class Table(Mapping[str, MetricSpec]):
    """Name -> spec. Those of other packages are loaded when they are asked for by name."""

    def __init__(self, own: tuple[MetricSpec, ...]) -> None:
        self.own = {spec.name: spec for spec in own}
        self._found: dict[str, EntryPoint] = {}
        self._looked_in: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> MetricSpec:
        if name in self.own:
            return self.own[name]
        return _loaded(self._others()[name])

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from (name for name in self._others() if name not in self.own)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _others(self) -> dict[str, EntryPoint]:
        if tuple(sys.path) != self._looked_in:  # looking through all packages takes 20 ms
            self._found = {point.name: point for point in entry_points(group=GROUP)}
            self._looked_in = tuple(sys.path)
        return self._found


def _loaded(point: EntryPoint) -> MetricSpec:
    package = point.dist.name if point.dist else point.value
    try:
        spec = point.load()
    except Exception as error:  # another package's code may fail in any way
        raise InputError(f"metric {point.name!r} of {package} does not load: {error}") from error
    if not isinstance(spec, MetricSpec) or spec.name != point.name:
        raise InputError(f"metric {point.name!r} of {package} is not a MetricSpec of that name")
    return spec


METRICS = Table(_OWN)


def find(name: str) -> MetricSpec:
    """The metric of this name. Raises InputError with the nearest name where there is none."""
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}{nearest(name, METRICS)}")
    return METRICS[name]


def chosen(quality: Quality) -> list[MetricSpec]:
    """The metrics that a recipe asks for; with none named, all of qbench's own."""
    if quality.metrics is None:
        return list(METRICS.own.values())
    return [find(name) for name in dict.fromkeys(quality.metrics)]


def lacking(quality: Quality, model: Model) -> dict[str, str]:
    """Metric -> why it cannot be computed for this model here, empty where it can."""
    return {name: spec.lacking(quality, model) for name, spec in METRICS.items()}


def margin(spec: MetricSpec, quality: Quality) -> Margin | None:
    """The margin that a recipe sets for this metric, else the metric's own.

    A number by itself is in the metric's unit, or a share of the reference's mean where that is
    how the metric's own margin is given.
    """
    said = quality.margins.get(spec.name, spec.margin)
    if not isinstance(said, float):
        return said
    if spec.margin and spec.margin.of == "reference":
        return Margin(size=said, of="reference")
    return Margin(size=said)


def margins(quality: Quality, reference: Mapping[str, Metric]) -> dict[str, float]:
    """Every metric's margin in the metric's own unit, given the reference's figures.

    One that is a share of what the reference has is left out where the reference has it not.
    """
    sizes = {}
    for name in {**METRICS.own, **quality.margins}:
        said = margin(METRICS[name], quality) if name in METRICS else None
        figure = reference.get(name)
        if said is None:
            continue
        if said.of == "unit":
            sizes[name] = said.size
        elif said.of == "reference":
            if figure is not None:
                sizes[name] = said.size * (abs(figure.value) or 1.0)
        elif said.of == "spread":
            if figure is not None and figure.summary is not None:
                sizes[name] = said.size * (figure.summary.sigma or 1.0)
        else:
            assert_never(said.of)
    return sizes


def check(quality: Quality) -> None:
    """Raises InputError, which begins with the field, for metrics and margins that are none."""
    mistakes = Mistakes()
    for place, names in (("metrics", quality.metrics or ()), ("margins", quality.margins)):
        for name in names:
            try:
                spec = find(name)
            except InputError as error:
                mistakes.add(f"quality.{place}: {error}")
                continue
            if place == "margins" and spec.margin is None:
                known = [known.name for known in METRICS.own.values() if known.margin]
                hint = nearest(name, known)
                mistakes.add(f"quality.margins: {name!r} has no margin{hint}")
    mistakes.tell()
