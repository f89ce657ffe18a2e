"""The schema of quantization: which layers, by which library, and what they are fitted to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qbench.errors import brief, nearest
from qbench.recipe.choices import (
    AS_IT_IS,
    CALIBRATED,
    FIXED,
    GROUPED,
    SCHEMES,
    Backend,
    CalibrationMethod,
)
from qbench.recipe.strict import Named, Strict


class Calibration(Strict):
    """Fits the quantization to activations along denoise trajectories.

    Whole trajectories of the recipe's scheduler are walked, with both halves of guidance, from
    prompts and noise that are not measured with.
    """

    method: CalibrationMethod
    """`smoothquant` scales outliers of activations into weights, `awq` keeps the weights of strong
    channels exact and clips groups, `gptq` makes up for each column's error in those to come,
    `svdquant` keeps the strongest directions in half precision."""
    set: Named | None = None
    """Prompt set or file; null is the model's own, `world-2048-v1` for the bundled model."""
    prompts: Annotated[int, Field(ge=1, le=4096)] = 8
    """So many of it, leaving out all that are measured with."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 10
    """Denoise steps of each trajectory that are looked at, from first to last."""
    samples: Annotated[int, Field(ge=16, le=1_000_000)] = 1024
    """Tokens kept of each linear's inputs, on which candidates are compared."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1_500_000_000
    """Of the first trajectory's noise and of the sample."""
    exponent: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of smoothquant; null searches one for each input."""
    ranges: Annotated[int, Field(ge=2, le=8)] | None = None
    """Of timesteps, each with scales and weights of its own (ViDiT-Q), for smoothquant of
    int8_dynamic; null fits one to the whole trajectory."""
    rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Of svdquant's branch; null is 32."""
    rounding: Literal["nearest", "gptq"] | None = None
    """How weights are rounded once a method has scaled or split them; null is `nearest`, and `gptq`
    for the method of that name."""
    damping: Annotated[float, Field(gt=0, le=1)] | None = None
    """Of gptq's Hessians, as a share of their mean diagonal; null is 0.01."""

    @model_validator(mode="after")
    def _own_fields(self) -> Calibration:
        for field, method in (
            ("exponent", "smoothquant"), ("ranges", "smoothquant"), ("rank", "svdquant"),
        ):  # fmt: skip
            if getattr(self, field) is not None and self.method != method:
                raise ValueError(f"@{field}: is {method}'s; {self.method} has no such field")
        if self.method == "gptq" and self.rounding == "nearest":
            raise ValueError("@rounding: the method gptq is that of rounding")
        if self.damping is not None and self.rounds != "gptq":
            raise ValueError("@damping: is gptq's; 'rounding' is nearest")
        return self

    @property
    def rounds(self) -> str:
        """How weights are rounded."""
        return self.rounding or ("gptq" if self.method == "gptq" else "nearest")


class Quantize(Strict):
    """Which layers are quantized, and how: linears, and convolutions where that is said."""

    backend: Backend
    """The library that quantizes."""
    scheme: str
    """What weights and activations become; `qbench ls` lists the schemes of each backend."""
    include: list[str] = Field([])
    """Parts of module names: only layers that match one are quantized. Empty is all."""
    exclude: list[str] = Field([])
    """Parts of module names: layers that match one stay as they are."""
    layers: dict[str, str] = Field({})
    """Scheme by a module's whole name, for those that have another; `none` leaves one as it is.
    `qbench search` fills it."""
    group: Literal[32, 64, 128] | None = None
    """Weights that share a scale, in schemes of few bits; null is torchao's 32 and qbench's 64."""
    calibration: Calibration | None = None
    """Fit to activations; null rounds weights as they are."""
    convolutions: bool = False
    """Those over two dimensions too, of which a UNet is made for the most part. By optimum-quanto
    alone; convolutions over three dimensions, as over time, no library here quantizes."""
    tune: bool = False
    """torchao's autotuning, which its published recipes use and which holds for the whole process:
    the first call then takes minutes."""

    @model_validator(mode="after")
    def _known_scheme(self) -> Quantize:
        if self.scheme not in SCHEMES[self.backend]:
            hint = nearest(self.scheme, SCHEMES[self.backend])
            raise ValueError(f"@scheme: {self.backend} has no scheme {brief(self.scheme)}{hint}")
        for layer, scheme in self.layers.items():
            if scheme not in (AS_IT_IS, *SCHEMES[self.backend]) or (self.backend, scheme) in FIXED:
                hint = nearest(scheme, (AS_IT_IS, *SCHEMES[self.backend]))
                raise ValueError(f"@layers: {brief(layer)}: no scheme {brief(scheme)}{hint}")
        chosen = (self.backend, self.scheme)
        if self.group is not None and chosen not in GROUPED:
            raise ValueError(f"@group: weights of {self.backend} {self.scheme} have no groups")
        if self.convolutions and self.backend != "quanto":
            raise ValueError(f"@convolutions: {self.backend} quantizes linears alone, quanto both")
        if self.calibration is None:
            if chosen in FIXED:
                raise ValueError(f"@scheme: {self.scheme} needs 'calibration: {{method: ...}}'")
            return self
        method = self.calibration.method
        if self.calibration.ranges and self.scheme != "int8_dynamic":
            raise ValueError(f"@calibration.ranges: are for int8_dynamic, not {self.scheme}")
        if self.layers and method != "gptq":
            raise ValueError(f"@layers: {method} gives linears that share an input one scheme")
        if chosen not in CALIBRATED[method]:
            known = ", ".join(f"{backend} {name}" for backend, name in CALIBRATED[method])
            others = ", ".join(one for one, taken in CALIBRATED.items() if chosen in taken)
            hint = f", which {others} are" if others else ""
            raise ValueError(
                f"@calibration.method: {method} is not for {self.backend} {self.scheme}{hint}; "
                f"it is for {known}"
            )
        return self
