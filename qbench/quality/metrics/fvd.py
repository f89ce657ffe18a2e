"""Fréchet and kernel distance between the features of two sets of videos."""

from __future__ import annotations

import math

import torch

from qbench.quality.means import CONFIDENCE

RESAMPLES = 200  # enough for a standard error; each costs a Fréchet distance


class Moments:
    """Mean and covariance of features that come in parts, in float64 (Chan et al. 1979)."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self._scatter = torch.zeros(size, size, dtype=torch.float64)

    def update(self, features: torch.Tensor) -> Moments:
        """features: (n, size). Returns itself."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be (n, {len(self.mean)}), got {tuple(features.shape)}")
        if not len(features):
            return self
        x = features.detach().cpu().double()
        mean, n = x.mean(0), len(x)
        total = self.count + n
        shift = mean - self.mean
        centred = x - mean
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * n / total)
        self.mean = self.mean + shift * (n / total)
        self.count = total
        return self

    def covariance(self) -> torch.Tensor:
        """Of the sample (n - 1)."""
        if self.count < 2:
            raise ValueError("a covariance needs at least two videos")
        return self._scatter / (self.count - 1)


def moments(features: torch.Tensor) -> Moments:
    return Moments(features.shape[1]).update(features)


def frechet_distance(a: Moments, b: Moments) -> float:
    """||mu_a - mu_b||^2 + tr(A + B - 2 (A B)^1/2), (Dowson and Landau 1982; FVD: Unterthiner 2018).

    Both of at least two videos. Lower is closer; 0 for equal Gaussians. The trace of the root comes
    from symmetric eigendecompositions in float64: it is the sum of the singular values of
    A^1/2 B^1/2, which holds for singular covariances too.
    """
    if len(a.mean) != len(b.mean):
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} cannot be compared")
    cov_a, cov_b = a.covariance(), b.covariance()
    shift = (a.mean - b.mean).square().sum()
    roots = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b))
    return max((shift + cov_a.trace() + cov_b.trace() - 2 * roots.sum()).item(), 0.0)


def _root(symmetric: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under (x.y / d + 1)^3 (Binkowski et al. 2018).

    a, b: features (n, d) and (m, d), n and m at least 2. 0 is expected of equal distributions at
    any n and m, so single values fall on both sides of it. Sets of equal size may be paired (the
    same prompts and noise): then no video meets its own pair (Gretton et al. 2012, eq. 4), which
    would make close pairs look closer than equal.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features must be (n, d) and (m, d), got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if len(a) < 2 or len(b) < 2:
        raise ValueError("a kernel distance needs at least two videos on either side")
    a, b = a.double(), b.double()

    def off_diagonal(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    cross = _kernel(a, b)
    between = off_diagonal(cross) if len(a) == len(b) else cross.mean()
    return (off_diagonal(_kernel(a, a)) + off_diagonal(_kernel(b, b)) - 2 * between).item()


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def kernel_samples(ours: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, float]:
    """What each pair of videos contributes to `kernel_distance`, and the reference's own spread.

    ours, reference: features (n, d) of the same prompts in the same order, n at least 3. Returns
    jackknife pseudo-values (n,), whose mean is the distance and whose standard error is its own
    (Tukey 1958; the distance is a U-statistic of pairs, Gretton et al. 2012, lemma 6), and
    the mean squared distance of the reference's videos from their mean under the same kernel: a set
    that is shifted by as much as single videos differ has a distance of that size.
    """
    if ours.shape != reference.shape or ours.ndim != 2 or len(ours) < 3:
        raise ValueError(
            f"pairs need equal features of 3 videos or more, got {tuple(ours.shape)}, "
            f"{tuple(reference.shape)}"
        )
    a, b = ours.double(), reference.double()
    n, own, cross = len(a), _kernel(b, b), _kernel(a, b)
    each = _kernel(a, a) + own - cross - cross.T
    each.fill_diagonal_(0)
    total = each.sum() / (n * (n - 1))
    left_out = (n * total - 2 * each.sum(1) / (n - 1)) / (n - 2)
    apart = (own.sum() - own.diagonal().sum()) / (n * (n - 1))
    return n * total - (n - 1) * left_out, (own.diagonal().mean() - apart).item()


def frechet_interval(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float] | None:
    """95 % interval of the Fréchet distance that as many pairs of videos have on average.

    a, b: features (n, d) of the same prompts and noise, row by row; None for fewer than three. The
    value and t times its bootstrap standard error over the pairs: percentiles would be off, for a
    resample holds duplicates and lies further from the other than the sample does. The bias of few
    videos is not taken out, so intervals of unequal n are not to be compared.
    """
    from scipy import stats

    n = len(a)
    if n < 3 or n != len(b):
        return None
    a, b = a.double(), b.double()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(n, (RESAMPLES, n), generator=generator)
    error = torch.tensor([_frechet(a[drawn], b[drawn]) for drawn in rows]).std().item()
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    value = _frechet(a, b)
    return (max(value - reach, 0.0), value + reach) if math.isfinite(reach) else None


def _frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """`frechet_distance` of features (n, d) in float64, by the smaller of n and d.

    The trace of the root of A B is the nuclear norm of X Y', where A = X'X and B = Y'Y.
    """
    x, y = ((v - v.mean(0)) / (len(v) - 1) ** 0.5 for v in (a, b))
    shift = (a.mean(0) - b.mean(0)).square().sum()
    traces = x.square().sum() + y.square().sum()
    if len(a) > a.shape[1]:
        x, y = (torch.linalg.qr(v, mode="r").R for v in (x, y))
    return max((shift + traces - 2 * torch.linalg.svdvals(x @ y.T).sum()).item(), 0.0)
