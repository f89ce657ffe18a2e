"""Spending a budget over layers: one scheme for each, the least error in all, and a proof of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qbench.errors import InputError


@dataclass(frozen=True)
class Option:
    """One scheme of one layer: what it costs of the budget, and the error that it causes."""

    cost: float
    error: float


@dataclass(frozen=True)
class Choice:
    """The scheme of every layer.

    cost, error: the sums of what was chosen.
    gap: how far the error may lie above the least possible one, as a share of it; 0 is exact.
    """

    schemes: dict[str, str]
    cost: float
    error: float
    gap: float


def choose(options: Mapping[str, Mapping[str, Option]], budget: float) -> Choice:
    """The schemes with the least sum of errors whose costs add up to the budget at most.

    A multiple-choice knapsack, solved as a mixed-integer program by branch and bound (HiGHS). Its
    errors are added, as if layers did not act upon each other. Raises InputError for a budget below
    the cheapest choice.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    flat = [(layer, name) for layer, found in options.items() for name in found]
    each = [options[layer][name] for layer, name in flat]
    least = sum(min(one.cost for one in found.values()) for found in options.values())
    if least > budget:
        raise InputError(f"--budget: {budget:g} is less than the cheapest choice of all: {least:g}")
    rows = {layer: number for number, layer in enumerate(options)}
    ones = csr_matrix(
        (np.ones(len(flat)), ([rows[layer] for layer, _ in flat], range(len(flat)))),
        shape=(len(rows), len(flat)),
    )
    costs = np.array([one.cost for one in each])
    errors = np.array([one.error for one in each])
    scale = errors.max() or 1.0
    solved = milp(
        errors / scale,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(ones, 1, 1),
            LinearConstraint((costs / budget)[None, :], 0, 1 + 1e-9),
        ],
        options={"mip_rel_gap": 1e-6, "time_limit": 60.0},
    )
    if solved.x is None:
        raise RuntimeError(f"the budgeted choice was not found: {solved.message}")
    chosen = [pair for pair, value in zip(flat, solved.x, strict=True) if value > 0.5]
    picked = [options[layer][name] for layer, name in chosen]
    return Choice(
        schemes=dict(chosen),
        cost=sum(one.cost for one in picked),
        error=sum(one.error for one in picked),
        gap=float(solved.mip_gap or 0.0),
    )
