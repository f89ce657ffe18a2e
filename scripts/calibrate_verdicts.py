"""How often verdicts and intervals err, by simulation: the figures in the docs on statistics.

    python -m scripts.calibrate_verdicts [--trials 1000] [--part intervals ...]

Everything is drawn from seeds, so two calls print the same. Parts: see PARTS. With 1,000 trials a
share of 5 % is known to 0.7 points, one of 50 % to 1.6.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from qbench.quality.comparison import compare
from qbench.quality.floor import Floor, Quality
from qbench.quality.means import mean_interval
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.ratios import paired_speed_up, speed_words
from qbench.quality.statistics import Metric, summarise
from qbench.quality.verdict import Candidate, Judged, judge

Array = np.ndarray
Line = tuple[str, float]
NUMBERS = (12, 48, 128)  # videos
MARGINS = {
    "psnr": 48.13,
    "clip_score": 0.5,
    "clip_consistency": 0.5,
    "adherence": 0.05,
    "flicker": 0.002,
    "sharpness": 0.05,
    "contrast": 0.03,
    "motion_amount": 0.1,
    "motion_rhythm": 0.1,
}
# Standard deviation over videos of each figure's difference, as another seed's videos have it.
OTHER_SEED = {"clip_score": 2.0, "clip_consistency": 1.5, "flicker": 0.005} | {
    "sharpness": 0.1, "contrast": 0.06, "motion_amount": 0.25, "motion_rhythm": 0.2,
}  # fmt: skip


def intervals(trials: int) -> list[Line]:
    """Share of 95 % intervals of a mean that hold it."""
    draws: dict[str, tuple[Callable[[np.random.Generator, int], Array], float]] = {
        "normal": (lambda rng, n: rng.normal(size=n), 0.0),
        "log-normal, sigma 0.5": (lambda rng, n: rng.lognormal(0, 0.5, n), np.exp(0.125)),
        "log-normal, sigma 1": (lambda rng, n: rng.lognormal(0, 1, n), np.exp(0.5)),
        "Student's t, 3 degrees": (lambda rng, n: rng.standard_t(3, n), 0.0),
        "5 % of videos lose 10": (
            lambda rng, n: rng.normal(0, 0.3, n) - 10 * (rng.random(n) < 0.05),
            -0.5,
        ),
    }
    found = []
    for name, (draw, mean) in draws.items():
        for n in NUMBERS:
            rng = np.random.default_rng(n)
            ends = [mean_interval(draw(rng, n)) for _ in range(trials)]
            hit = [
                low <= mean <= high for low, high in ends if low is not None and high is not None
            ]
            found.append((f"{name}, n = {n}", float(np.mean(hit))))
    return found


def speed(trials: int) -> list[Line]:
    """Intervals of speed-ups under drift, and tables of equals that call one faster or slower."""
    found = []
    for r in (0.0, 0.5, 0.9):
        for n in (12, 40):
            rng = np.random.default_rng(n)
            ratios = [paired_speed_up([1.0] * n, _drifting(rng, n, r)) for _ in range(trials)]
            covered = np.mean([ratio.low <= 1 <= ratio.high for ratio in ratios])
            found.append((f"interval holds 1, AR(1) {r:g} of 3 %, {n} pairs", float(covered)))
            tables = [speed_words(ratios[i : i + 20]) for i in range(0, trials - 19, 20)]
            said = np.mean([bool({"faster", "SLOWER"} & set(words)) for words in tables])
            found.append((f"tables of 20 equals with a claim, AR(1) {r:g}, {n} pairs", float(said)))
    return found


def _drifting(rng: np.random.Generator, n: int, r: float) -> list[float]:
    x = [float(rng.normal())]
    for _ in range(n - 1):
        x.append(r * x[-1] + np.sqrt(1 - r * r) * float(rng.normal()))
    return [float(np.exp(0.03 * value)) for value in x]


# Verdicts -----------------------------------------------------------------------------------------


def _metric(name: str, values: Array) -> Metric:
    samples = [float(value) for value in values]
    found, spec = summarise(samples), METRICS[name]
    return Metric(
        value=found.mean, unit=spec.unit, better=spec.better, summary=found, samples=samples
    )


def _reference(rng: np.random.Generator, n: int) -> Quality:
    return {
        "clip_score": _metric("clip_score", rng.normal(30, 3, n)),
        "clip_consistency": _metric("clip_consistency", rng.normal(95, 3, n)),
        "adherence": _metric("adherence", np.ones(n)),
        "flicker": _metric("flicker", rng.uniform(0.01, 0.03, n)),
    }


def _variant(
    rng: np.random.Generator, reference: Quality, loss: float = 0.0, spread: float = 1.0
) -> Quality:
    """Other videos as good, or with a loss of CLIP score and of sharpness in margins."""
    n = len(reference["clip_score"].samples or [])
    made = {"psnr": _metric("psnr", rng.normal(30, 3, n))}
    for name, sigma in OTHER_SEED.items():
        gaps = rng.normal(0, spread * sigma, n)
        if name in ("clip_score", "sharpness"):
            gaps -= loss * MARGINS[name]
        base = np.asarray(reference[name].samples) if name in reference else np.zeros(n)
        made[name] = _metric(name, base + gaps)
    made["adherence"] = reference["adherence"]
    return made


def _tables(trials: int, n: int, loss: float, spread: float, rows: int = 10) -> list[list[Judged]]:
    rng = np.random.default_rng(n + rows)
    found = []
    for _ in range(trials):
        reference = _reference(rng, n)
        every = [Candidate(str(i), _variant(rng, reference, loss, spread)) for i in range(rows)]
        found.append(judge(every, reference, Floor(), MARGINS))
    return found


def nulls(trials: int) -> list[Line]:
    """Tables of ten equal variants in which one is called worse."""
    found = []
    for spread, named in ((1.0, "another seed's spread"), (0.2, "a fifth of it")):
        for n in NUMBERS:
            tables = _tables(trials // 5, n, 0.0, spread)
            bad = [
                [j.text.rstrip("?") in ("degraded", "broken") for j in table] for table in tables
            ]
            sure = [[j.text in ("degraded", "broken") for j in table] for table in tables]
            label = f"{named}, n = {n}"
            found.append((f"tables with degraded, with or without '?': {label}", _any(bad)))
            found.append((f"tables with degraded for certain: {label}", _any(sure)))
            settled = [[j.shown for j in table] for table in tables]
            found.append((f"variants settled: {label}", float(np.mean(settled))))
    return found


def _any(said: list[list[bool]]) -> float:
    return float(np.mean([any(row) for row in said]))


def losses(trials: int) -> list[Line]:
    """One variant that loses so many margins in two figures: what it is called."""
    found = []
    for loss in (0.5, 1.0, 2.0, 8.0):
        for n in NUMBERS:
            judged = [table[0] for table in _tables(trials // 2, n, loss, 0.5, rows=1)]
            words = [one.text for one in judged]
            for word in ("drift", "drift?", "degraded?", "degraded", "broken"):
                if share := words.count(word) / len(words):
                    found.append((f"a loss of {loss:g} margins, n = {n}: {word}", share))
    return found


def shares(trials: int) -> list[Line]:
    """A true loss of adherence: how often a loss of the margin (5 %) is ruled out."""
    found = []
    for lost in (0.05, 0.1):
        for n in NUMBERS:
            rng = np.random.default_rng(n)
            hit = 0
            for _ in range(trials):
                ours = (rng.random(n) >= lost).astype(float).tolist()
                hit += compare("adherence", ours, [1.0] * n, "higher", 0.05).no_loss_p < 0.05
            found.append((f"a loss of {lost:.0%}, n = {n}", hit / trials))
    return found


def sets(trials: int) -> list[Line]:
    """Kernel distance of equal sets, paired by prompt: how often a difference is claimed."""
    import torch

    from qbench.quality.metrics import fvd
    from qbench.quality.verdict import SET_SHARE

    found = []
    for n in NUMBERS:
        made = torch.Generator().manual_seed(n)
        alarms, settled, held = 0, 0, 0
        for _ in range(trials // 2):
            prompts = torch.randn(n, 64, generator=made)
            ours, theirs = (prompts + 0.5 * torch.randn(n, 64, generator=made) for _ in range(2))
            samples, scale = fvd.kernel_samples(ours, theirs)
            share = SET_SHARE * scale
            c = compare("kvd_reference", samples.tolist(), None, "lower", share)
            alarms += c.worse_p < 0.05 and c.low is not None and c.low < -c.margin
            settled += c.no_loss_p < 0.05
            held += c.low is not None and c.high is not None and c.low <= 0 <= c.high
        for what, count in (
            ("interval holds 0", held),
            ("called degraded, uncorrected", alarms),
            ("settled", settled),
        ):
            found.append((f"equal sets, n = {n}: {what}", count / (trials // 2)))
    return found


def floors(trials: int) -> list[Line]:
    """A variant of the floor's own kind: how often it is not called the reference's own."""
    found = []
    for n in NUMBERS:
        rng = np.random.default_rng(n)
        rejected = 0
        for _ in range(trials // 2):
            reference = _reference(rng, n)
            same = {**_variant(rng, reference, spread=0.01)}
            floor = Floor({"compiled": {"psnr": _metric("psnr", rng.normal(42, 2.5, n))}})
            own = {**same, "psnr": _metric("psnr", rng.normal(42, 2.5, n))}
            judged = judge([Candidate("v", own)], reference, floor, MARGINS)[0]
            rejected += judged.verdict != "indistinguishable"
        found.append((f"own kind rejected, n = {n}", rejected / (trials // 2)))
    return found


PARTS: dict[str, Callable[[int], list[Line]]] = {
    "intervals": intervals,
    "speed": speed,
    "nulls": nulls,
    "losses": losses,
    "shares": shares,
    "sets": sets,
    "floors": floors,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--part", choices=PARTS, action="append")
    arguments = parser.parse_args()
    for name in arguments.part or PARTS:
        part = PARTS[name]
        print(f"\n{(part.__doc__ or '').splitlines()[0]}\n\n| | share |\n| --- | --- |")
        for line, share in part(arguments.trials):
            print(f"| {line} | {share:.1%} |")


if __name__ == "__main__":
    main()
