"""Fréchet and kernel distance between the features of two sets of videos."""

from __future__ import annotations

import torch

FEW = 256  # videos below which a Fréchet distance says more about n than about quality
PROTOCOL = 2048  # videos of the published protocol


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

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off_diagonal(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    cross = kernel(a, b)
    between = off_diagonal(cross) if len(a) == len(b) else cross.mean()
    return (off_diagonal(kernel(a, a)) + off_diagonal(kernel(b, b)) - 2 * between).item()


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

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n, own, cross = len(a), kernel(b, b), kernel(a, b)
    each = kernel(a, a) + own - cross - cross.T
    each.fill_diagonal_(0)
    total = each.sum() / (n * (n - 1))
    left_out = (n * total - 2 * each.sum(1) / (n - 1)) / (n - 2)
    apart = (own.sum() - own.diagonal().sum()) / (n * (n - 1))
    return n * total - (n - 1) * left_out, (own.diagonal().mean() - apart).item()
