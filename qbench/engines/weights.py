"""All tensors of a denoiser in one file, for engines that are PyTorch's module still."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines.manifest import Wrong

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "denoiser.safetensors"


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers by name, those that no state_dict has included."""
    return {**module.state_dict(keep_vars=True), **dict(module.named_buffers())}


def save(module: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    # Copies, for a file of tensors that share memory is refused.
    held = {name: value.detach().to("cpu", copy=True) for name, value in tensors(module).items()}
    save_file({name: value.contiguous() for name, value in held.items()}, folder / FILE)


def load(folder: Path, device: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / FILE, device=device)


def fill(module: nn.Module, stored: Mapping[str, Tensor], folder: Path) -> None:
    """Put a folder's tensors into a module without data. Raises Wrong where they are others."""
    import torch

    path, wanted = folder / FILE, tensors(module)
    if wanted.keys() != stored.keys():
        name = sorted(wanted.keys() ^ stored.keys())[0]
        raise Wrong(f"{path}: {name}: not in both the file and the denoiser")
    for name, value in stored.items():
        if value.shape != wanted[name].shape:
            raise Wrong(f"{path}: {name}: {tuple(value.shape)}, not {tuple(wanted[name].shape)}")
        parent, _, leaf = name.rpartition(".")
        owner = module.get_submodule(parent)
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
        else:
            owner._buffers[leaf] = value
