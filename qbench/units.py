"""Quantities as text: three significant digits, in the unit that they are read in."""

from __future__ import annotations


def three(value: float) -> str:
    """Three significant digits, and 1003 where '.3g' has 1e+03."""
    return f"{value:.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"


def bytes_text(count: float) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{three(value)} {unit}"
