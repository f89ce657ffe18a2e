"""How much the denoiser's residual grows or shrinks from step to step, which MagCache goes by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from torch import Tensor

    from qbench.optimizations.caching.base import Total
    from qbench.optimizations.calibration import Occasion
    from qbench.pipelines.base import Module, VideoPipeline

PROMPTS, SEED = 4, 1_500_000_000


def ratios(video: VideoPipeline, occasion: Occasion, prompts: int) -> list[float]:
    """The mean ratio of every step, 1 for the first; one a step of the recipe's own trajectories.

    A token's residual is what the blocks add to it, and its ratio that of the residual's length to
    the one a step before (MagCache, Ma 2025, equation 4), meant over tokens, both halves of
    guidance and prompts, none of which is measured with. Raises InputError where it is no number.
    """
    import torch

    from qbench.errors import InputError
    from qbench.optimizations.calibration import unmeasured

    texts = unmeasured(prompts, "variant.cache.prompts", occasion.model, occasion.tests)
    sums = torch.zeros(occasion.run.steps, dtype=torch.float64)
    for number, text in enumerate(texts):
        found = by_step(_lengths(video, occasion, text, SEED + number))
        sums += torch.tensor(found, dtype=torch.float64)
    lost = (~sums.isfinite()).nonzero().flatten().tolist()
    if lost:
        raise InputError(
            f"variant.cache: the denoiser makes NaN or infinity by step {lost[0] + 1} of "
            f"{len(sums)}, and no ratio can be calibrated of that: see what comes without the cache"
        )
    return [float(x) for x in sums / len(texts)]


def agreed(found: list[float], total: Total, device: torch.device) -> list[float]:
    """The ranks' mean: each calibrates by itself, and the last digit may decide about a step."""
    import torch

    sums = total(torch.tensor([*found, 1.0], device=device))
    return [float(x) for x in sums[:-1] / sums[-1]]


def _lengths(video: VideoPipeline, occasion: Occasion, text: str, seed: int) -> list[list[Tensor]]:
    """Of the tokens' residuals along one video: by step, of each call of it."""
    found: list[list[Tensor]] = [[]]
    with _residuals(video, lambda x: found[-1].append(x.norm(dim=-1))):
        video.denoise(
            occasion.run,
            video.encode(occasion.run, [text]),
            video.noise(occasion.run, seed),
            lambda _: found.append([]),
            generators=video.generators([seed]),
        )
    return found[:-1]


def by_step(lengths: Sequence[Sequence[Tensor]]) -> list[float]:
    """lengths: of the tokens' residuals, by step and by call of a step. 1 for the first step."""
    found = [1.0]
    for before, now in itertools.pairwise(lengths):
        pairs = zip(now, before, strict=True)
        each = [float((x / y.clamp_min(1e-8)).mean()) for x, y in pairs]
        found.append(sum(each) / len(each))
    return found


@contextmanager
def _residuals(video: VideoPipeline, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand over, in float32, what all blocks together add to the tokens of each call."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    blocks = video.repeated_blocks()
    known = TransformerBlockRegistry.get(type(blocks[0]))
    given: list[Tensor] = []

    def before(_: Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        name = known.hidden_states_argument_name
        given[:] = [known._get_parameter_from_args_kwargs(name, args, kwargs)]

    def after(_: Module, __: object, out: Tensor | tuple[Tensor, ...]) -> None:
        found = out[known.return_hidden_states_index] if isinstance(out, tuple) else out
        see(found.float() - given[0].float())

    handles = [
        blocks[0].register_forward_pre_hook(before, with_kwargs=True),
        blocks[-1].register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
