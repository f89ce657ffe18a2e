"""What a manifest says of an engine unmeasured: its model, inputs, layers, and how to load it."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines import manifest
from qbench.engines.checkpoint import by_quanto

if TYPE_CHECKING:
    from qbench.engines.evidence import Call
    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Bound, Description, Format
    from qbench.pipelines.base import VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.recipe.schema import Recipe, Variant

CARD_BYTES = 10_000  # of a model's card, in which its licence is looked for


def description(
    recipe: Recipe,
    model: Model,
    form: Format,
    video: VideoPipeline,
    signature: Signature,
    calibration: Mapping[str, str | int | float],
    calls: Sequence[Call],
    bound: Bound,
    denoiser_only: bool,
) -> Description:
    from qbench.engines.inputs import described
    from qbench.engines.onnx import OUTPUT
    from qbench.meters.environment import libraries

    module = video.denoiser
    outside = _outside(recipe.variant, form)
    return manifest.Description(
        format=form,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=recipe,
        recipe_fingerprint=recipe.fingerprint(),
        base_model=manifest.BaseModelFacts(
            name=model.name,
            source=Path(model.source).name if model.local else model.source,
            pipeline=video.pipeline_class,
            denoiser=type(module).__name__,
            part=video.part,
            weights=recipe.weights,
            digest=model.digest(recipe.weights),
            licence=_licence(model),
        ),
        dtype=str(module.dtype).removeprefix("torch."),
        groups=dict(signature.groups),
        inputs=described(calls[0].inputs, signature.batched),
        outputs=described({OUTPUT: calls[0].variant}, frozenset({OUTPUT})),
        layers=_layers(module),
        versions=libraries(),
        target=manifest.Target(
            device="cuda" if form == "tensorrt" else module.device.type,
            machine=platform.machine(),
            bound=bound,
        ),
        not_inside=outside,
        calibration=dict(calibration),
        load=_lines(video, form, outside, by_quanto(recipe.variant), denoiser_only),
    )


def _licence(model: Model) -> str:
    """Of the base model, as qbench knows it or its card in a local folder says."""
    card = Path(model.source) / "README.md"
    if model.licence or not card.is_file():
        return model.licence
    with card.open(encoding="utf-8", errors="replace") as file:
        head = file.read(CARD_BYTES)
    front = head.split("\n---", 1)[0] if head.startswith("---\n") else ""
    said = [line for line in front.splitlines() if line.startswith("license:")]
    return said[0].partition(":")[2].strip()[:100] if said else ""


def _layers(module: object) -> dict[str, int]:
    """Linears and convolutions by what their weights are stored as."""
    import torch

    counted: dict[str, int] = {}
    for layer in module.modules():  # type: ignore[attr-defined]
        weight = getattr(layer, "weight", None)
        if isinstance(layer, torch.nn.modules.conv._ConvNd) or hasattr(layer, "in_features"):
            kind = type(weight).__name__
            plain = kind in ("Parameter", "Tensor", "NoneType")
            name = str(getattr(weight, "dtype", "none")).removeprefix("torch.") if plain else kind
            counted[name] = counted.get(name, 0) + 1
    return counted


def _outside(variant: Variant, form: Format) -> list[str]:
    """Choices that the files do not hold: they are made where the engine is used."""
    choices: Mapping[str, object] = {
        "compile": variant.compile and form in ("diffusers",),
        "attention": variant.attention != "auto" and form == "diffusers",
        "cache": variant.cache,
        "cuda_graph": variant.cuda_graph,
        "step_share": variant.step_share != 1,
        "decode": variant.decode != type(variant.decode)(),
        "memory": variant.memory != type(variant.memory)(),
    }
    return [name for name, chosen in choices.items() if chosen]


def _lines(
    video: VideoPipeline,
    form: Format,
    outside: Sequence[str],
    quanto: bool,
    denoiser_only: bool,
) -> list[str]:
    kind = video.pipeline_class
    # Without it diffusers loads in FP32, which quantized layers in BF16 do not fit.
    dtype = f"torch_dtype={video.denoiser.dtype}"
    first = ["import torch"]
    if form == "diffusers" and not quanto:
        if video.text_encoders() and not denoiser_only:
            return [
                *first,
                f"from diffusers import {kind}",
                f"pipe = {kind}.from_pretrained(FOLDER, {dtype})",
            ]
        part, own = video.part, type(video.denoiser).__name__
        return [
            *first,
            f"from diffusers import {kind}, {own}",
            f"denoiser = {own}.from_pretrained(FOLDER, subfolder={part!r}, {dtype})",
            f"pipe = {kind}.from_pretrained(MODEL, {part}=denoiser, {dtype})",
        ]
    loaded = f"{video.part}=qbench.load_engine(FOLDER)"
    lines = [
        "import qbench",
        *first,
        f"from diffusers import {kind}",
        f"pipe = {kind}.from_pretrained(MODEL, {loaded}, {dtype})",
    ]
    if outside:
        lines.append(f"qbench.apply(pipe, FOLDER)  # {', '.join(outside)}")
    return lines
