"""Proof that an engine computes what the module computes, and the inputs to repeat it elsewhere.

The inputs are those that the pipeline passed to its denoiser along real denoise trajectories, with
what the FP32 module and the variant in Python made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines.manifest import Accuracy, Against

if TYPE_CHECKING:
    from torch import Tensor

NAMES: dict[Against, str] = {"fp32": "FP32", "variant": "the variant in Python"}
INPUTS = "captured.safetensors"
MAX_BYTES = 2**29  # of stored calls; what is past it is checked at export and not stored


@dataclass(frozen=True)
class Call:
    """One call of the denoiser: its tensors by name, and the predictions for them."""

    inputs: Mapping[str, Tensor]
    fp32: Tensor  # the module in FP32
    variant: Tensor  # the recipe's variant, in Python


def accuracy(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Accuracy:
    """Largest relative L2 and absolute error and smallest cosine of any video of any call.

    Videos of a batch are compared one by one: guidance amplifies what sets its two halves apart.
    A value that is not finite gives an infinite error. Raises ValueError where shapes differ.
    """
    import math

    import torch

    relative, largest, total, values, cosine, calls = 0.0, 0.0, 0.0, 0, 1.0, 0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(f"shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
        calls += 1
        for a, b in zip(ours.double().cpu(), theirs.double().cpu(), strict=True):
            if not torch.isfinite(a).all():
                relative, largest, cosine = math.inf, math.inf, -1.0
                continue
            gap = a - b
            relative = max(relative, float(gap.norm() / b.norm().clamp(min=1e-30)))
            largest = max(largest, float(gap.abs().max()))
            total, values = total + float(gap.abs().sum()), values + gap.numel()
            norms = (a.norm() * b.norm()).clamp(min=1e-30)
            cosine = min(cosine, float((a * b).sum() / norms))
    mean = total / values if values else math.inf
    return Accuracy(
        relative_l2=relative, max_abs=largest, mean_abs=mean, cosine=cosine, calls=calls
    )


def against(which: Against, found: Sequence[Tensor], calls: Sequence[Call]) -> Accuracy:
    """How far predictions for the calls lie from those that are stored with them."""
    return accuracy(found, [getattr(call, which) for call in calls])


def predictions(
    run: Callable[[Mapping[str, Tensor]], Tensor], calls: Sequence[Call]
) -> list[Tensor]:
    """What `run` makes of every call's inputs, on the CPU."""
    import torch

    with torch.no_grad():
        return [run(call.inputs).cpu() for call in calls]


def store(calls: Sequence[Call], folder: Path) -> int:
    """Write as many calls as fit into MAX_BYTES, spread over all of them. Returns how many."""
    from safetensors.torch import save_file

    size = sum(_bytes(tensor) for tensor in _tensors(calls[0]).values())
    kept = calls[:: max(1, -(-len(calls) * size // MAX_BYTES))]
    flat = {
        f"{number:03d}/{name}": tensor.detach().cpu().contiguous().clone()
        for number, call in enumerate(kept)
        for name, tensor in _tensors(call).items()
    }
    save_file(flat, folder / INPUTS)
    return len(kept)


def load(folder: Path, device: str = "cpu") -> list[Call]:
    """The stored calls, their inputs on `device`.

    They are copied, for in the file they may lie at any byte, which some kernels for CPUs die of.
    """
    from safetensors.torch import load_file

    calls: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / INPUTS).items():
        number, _, name = key.partition("/")
        calls.setdefault(number, {})[name] = tensor
    return [
        Call(
            inputs={
                name.removeprefix("in/"): tensor.to(device, copy=True)
                for name, tensor in calls[number].items()
                if name.startswith("in/")
            },
            fp32=calls[number]["fp32"],
            variant=calls[number]["variant"],
        )
        for number in sorted(calls)
    ]


def _tensors(call: Call) -> dict[str, Tensor]:
    named = {f"in/{name}": tensor for name, tensor in call.inputs.items()}
    return {**named, "fp32": call.fp32, "variant": call.variant}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
