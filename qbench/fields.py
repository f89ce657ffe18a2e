"""Types of the fields that are read from files: finite numbers, and sizes with an upper bound.

A record may come from anywhere, so a figure that cannot be one (NaN, a size past 2^63, a string of
megabytes) is refused where it is read instead of breaking the arithmetic of a report.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Finite = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]  # its square is finite too
NonNegative = Annotated[float, Field(ge=0, le=1e30, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Word = Annotated[str, Field(max_length=200)]
Line = Annotated[str, Field(max_length=4_000)]
Text = Annotated[str, Field(max_length=20_000)]
