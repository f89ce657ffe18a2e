"""What every part of a recipe's schema is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Named = Annotated[str, Field(min_length=1)]  # where null has a meaning, '' must not pass for it


class Strict(BaseModel):
    """Unknown keys and wrong types are errors: a typo must not silently change a measurement."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # the reference in docs/recipes.md is made of them
    )
