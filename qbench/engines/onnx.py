"""Exporting the denoiser to ONNX."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

# From opset 23 on, attention stays one node. Below, it is written out as MatMul and Softmax, whose
# score tensor at video lengths passes 2^31 elements, where ONNX Runtime has returned wrong results.
OPSET = 23
INPUTS = ("hidden_states", "encoder_hidden_states", "timestep")


def export(module: Any, inputs: tuple[Any, ...], path: Path) -> Path:
    """Write `module` as ONNX with a free batch axis; weights beside it where they pass 2 GB.

    inputs: example (hidden_states, encoder_hidden_states, timestep).
    """
    import torch

    class Positional(torch.nn.Module):
        """The module with positional inputs and a bare tensor as output."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, hidden_states: Any, encoder_hidden_states: Any, timestep: Any) -> Any:
            return self.module(hidden_states, encoder_hidden_states, timestep, return_dict=False)[0]

    path.parent.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1, max=1024)
    large = sum(p.numel() * p.element_size() for p in module.parameters()) > 1.9e9
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Positional().eval(),
            inputs,
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=["sample"],
            dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
            external_data=large,
            verbose=False,
        )
    return path
