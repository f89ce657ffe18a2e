"""Fréchet distance between the features of two sets of videos."""

from __future__ import annotations

import torch

FEW = 256  # videos below which the value says more about n than about quality


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """||mu_a - mu_b||^2 + tr(A + B - 2 (A B)^1/2), (Dowson and Landau 1982; FVD: Unterthiner 2018).

    a, b: features (n, d) and (m, d), n and m at least 2. Lower is closer; 0 for equal Gaussians.
    The trace of the root comes from symmetric eigendecompositions in float64: it is the sum of the
    singular values of A^1/2 B^1/2, which holds for singular covariances too.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"features must be (n, d) and (m, d), got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    if len(a) < 2 or len(b) < 2:
        raise ValueError("a covariance needs at least two videos")
    a, b = a.double(), b.double()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    roots = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b))
    return max((shift + cov_a.trace() + cov_b.trace() - 2 * roots.sum()).item(), 0.0)


def _root(symmetric: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(symmetric.reshape(len(symmetric), -1))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
