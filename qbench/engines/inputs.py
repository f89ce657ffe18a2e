"""The inputs of an engine: those that the pipeline passes to its denoiser, by name."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qbench.engines.manifest import Bound, Interface, Target, TensorSpec
from qbench.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.pipelines.values import Conditioning, Resolved
    from qbench.recipe.schema import Recipe


@dataclass(frozen=True)
class Signature:
    """What an engine of a denoiser takes.

    kind: the denoiser's class, whose `forward` names the inputs.
    names: inputs in order; an input that the pipeline passes as a tuple of tensors counts as one
    for each, `image_rotary_emb` as `image_rotary_emb_0` and `image_rotary_emb_1`.
    groups: parameter of `forward` -> how many tensors it is, 0 for a bare one.
    batched: inputs whose first axis grows with the videos of a batch, so that it is left free.
    """

    kind: type  # not the module, whose weights would live as long as this
    groups: Mapping[str, int]
    batched: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            name
            for group, count in self.groups.items()
            for name in ([f"{group}_{i}" for i in range(count)] if count else [group])
        )

    def tensors(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, Tensor]:
        """The arguments of one call as tensors by name. Raises Unsupported where they differ."""
        from qbench.pipelines.capture import by_name

        given = by_name(self.kind, args, dict(kwargs))
        flat = flattened(given)
        if tuple(flat) != self.names:
            more = sorted(set(flat) - set(self.names))
            less = sorted(set(self.names) - set(flat))
            said = [f"it was not built for {', '.join(more)}"] if more else []
            said += [f"it needs {', '.join(less)}"] if less else []
            raise Unsupported(f"engine: the pipeline's inputs are others: {', and '.join(said)}")
        return flat

    def nested(self, tensors: tuple[Tensor, ...]) -> dict[str, object]:
        """The module's keywords from tensors in the order of `names`."""
        left = iter(tensors)
        return {
            group: tuple(next(left) for _ in range(count)) if count else next(left)
            for group, count in self.groups.items()
        }


def flattened(given: Mapping[str, object]) -> dict[str, Tensor]:
    """Inputs as tensors by name, in the module's order. Raises Unsupported for anything else."""
    import torch

    flat: dict[str, Tensor] = {}
    for group, value in given.items():
        parts: dict[str, object] = {group: value}
        if isinstance(value, (tuple, list)):
            parts = {f"{group}_{i}": part for i, part in enumerate(value)}
        for name, part in parts.items():
            if isinstance(part, (int, float)) and name == "timestep":
                part = torch.tensor(part)
            if not isinstance(part, torch.Tensor):
                raise Unsupported(
                    f"engine: the pipeline passes {group!r}, a {type(value).__name__}, and an "
                    "engine takes tensors"
                )
            flat[name] = part
    return flat


def signature(
    video: VideoPipeline, run: Resolved, conditioning: Conditioning, latents: Tensor
) -> Signature:
    """What the pipeline passes for one video, and what of it grows for two."""
    import torch

    one = video.example_inputs(run, conditioning, latents)
    two = video.example_inputs(run, doubled(conditioning), torch.cat([latents] * 2))
    groups = {
        name: len(value) if isinstance(value, (tuple, list)) else 0 for name, value in one.items()
    }
    shapes = [{k: v.shape for k, v in flattened(inputs).items()} for inputs in (one, two)]
    batched = {
        name for name, shape in shapes[0].items()
        if len(shape) and shapes[1][name] == (2 * shape[0], *shape[1:])
    }  # fmt: skip
    others = [
        name for name in shapes[0] if name not in batched and shapes[0][name] != shapes[1][name]
    ]
    if others:
        raise Unsupported(
            f"engine: {others[0]!r} grows with a batch in another axis than its first"
        )
    return Signature(type(video.denoiser), groups, frozenset(batched))


def doubled(conditioning: Conditioning) -> Conditioning:
    """The same prompts twice."""
    import torch

    given = {name: value for name, value in vars(conditioning).items() if value is not None}
    return replace(conditioning, **{name: torch.cat([v, v]) for name, v in given.items()})


def for_export(
    module: Module, signature: Signature, example: Mapping[str, Tensor]
) -> tuple[nn.Module, tuple[Tensor, ...], tuple[tuple[dict[int, torch.export.Dim] | None, ...]]]:
    """What torch.export takes: a module of positional tensors, these, and their free axes.

    example: one call's tensors by name. The exported batch takes any size: of one video alone
    torch.export would take it for a constant, so there are two. All tensors are contiguous, and
    what is compiled of them may rely on that.
    """
    import torch

    class Positional(torch.nn.Module):
        """The module with positional tensors as inputs and a bare tensor as output."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: Tensor) -> Tensor:
            with _upsampling_any_batch():
                result: Tensor = self.module(**signature.nested(tensors), return_dict=False)[0]
            return result

    _place_at_own_size(module, example)
    batch = torch.export.Dim("batch", min=1, max=1024)
    free = tuple({0: batch} if name in signature.batched else None for name in signature.names)
    tensors = tuple(
        torch.cat([example[name]] * 2) if name in signature.batched else example[name].contiguous()
        for name in signature.names
    )
    return Positional().eval(), tensors, (free,)  # in one tuple: forward takes *tensors


def _place_at_own_size(module: Module, example: Mapping[str, Tensor]) -> None:
    """Have CogVideoX's table of positions lie there for the example's size.

    For another size than its configuration's, diffusers computes it in each call, by filling a
    tensor in place, and that is not exported. It is the same table, from the same function.
    """
    from diffusers.models.embeddings import CogVideoXPatchEmbed

    embed = getattr(module, "patch_embed", None)
    if not isinstance(embed, CogVideoXPatchEmbed) or not embed.use_positional_embeddings:
        return
    _, frames, _, height, width = example["hidden_states"].shape
    size = (height, width, (frames - 1) * embed.temporal_compression_ratio + 1)
    if size != (embed.sample_height, embed.sample_width, embed.sample_frames):
        table = embed._get_positional_embeddings(*size, device=module.device)
        embed.pos_embedding = table.to(module.dtype)  # in which it is added
        embed.sample_height, embed.sample_width, embed.sample_frames = size


@contextlib.contextmanager
def _upsampling_any_batch() -> Iterator[None]:
    """diffusers' upsampling without its copy of batches of 64 and more.

    The copy changes no value; asking for the size has torch.export take a UNet's batch, of which
    every video brings one for each frame, for one below 64.
    """
    from diffusers.models.upsampling import Upsample2D
    from torch.nn.functional import interpolate

    original = Upsample2D.forward

    def forward(
        self: Upsample2D, hidden_states: Tensor, output_size: int | None = None, *_: object
    ) -> Tensor:
        if self.norm is not None or self.use_conv_transpose or not self.interpolate:
            return original(self, hidden_states, output_size)
        scale = 2.0 if output_size is None else None
        wide = interpolate(hidden_states, size=output_size, scale_factor=scale, mode="nearest")
        if not self.use_conv:
            return wide
        made: Tensor = (self.conv if self.name == "conv" else self.Conv2d_0)(wide)
        return made

    Upsample2D.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        Upsample2D.forward = original  # type: ignore[method-assign]


def interface(
    recipe: Recipe,
    module: Module,
    signature: Signature,
    example: Mapping[str, Tensor],
    bound: Bound,
) -> Interface:
    """What a format's loader needs to know of an engine that was built of `module`."""
    return Interface(
        recipe=recipe,
        dtype=str(module.dtype).removeprefix("torch."),
        groups=dict(signature.groups),
        inputs=described(example, signature.batched),
        target=Target(device=module.device.type, machine=platform.machine(), bound=bound),
    )


def described(tensors: Mapping[str, Tensor], batched: frozenset[str]) -> list[TensorSpec]:
    """Tensors as a manifest names them."""
    return [
        TensorSpec(
            name=name,
            dtype=str(value.dtype).removeprefix("torch."),
            shape=list(value.shape),
            free=[0] if name in batched else [],
        )
        for name, value in tensors.items()
    ]
