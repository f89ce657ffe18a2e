"""The balance of channels before static quantization: outliers go out of the inputs they spoil.

SmoothQuant (Xiao et al. 2023, equation 4), by the exponent that brings a linear's product closest.
Where the family knows how, the layers before make the balanced channels, for nothing; elsewhere a
product in the graph does, where it is worth a node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from qbench.engines.static_seen import Seen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qbench.engines.onnx_static import Form
    from qbench.pipelines.base import VideoPipeline

EXPONENTS = (0.5, 0.65)  # SmoothQuant's alpha
MOST = 8  # powers of two that a channel is scaled by, either way
WORTH = 1.5  # so many times closer a product has to be for a node of its own


@contextlib.contextmanager
def balanced(
    video: VideoPipeline, seen: Mapping[str, Seen], form: Form
) -> Iterator[dict[str, Seen]]:
    """Meanwhile the layers before make balanced channels, where the family can rescale them.

    In half precision the factors are powers of two, so that scaling rounds nothing (but for FP16's
    smallest numbers).
    """
    import torch

    module = video.denoiser
    rounded = module.dtype != torch.float32
    before = {name: value.to("cpu", copy=True) for name, value in module.named_parameters()}
    found = dict(seen)
    try:
        for one in video.rescalings():
            if not one.readers or not all(n in seen and seen[n].per_token for n in one.readers):
                continue
            layers = [module.get_submodule(name) for name in one.readers]
            weights = [layer.weight.detach().float().cpu().numpy().T for layer in layers]
            given = seen[one.readers[0]]
            factors = balance(form, given, weights, rounded)
            if factors is not None:
                one.apply(torch.from_numpy(factors).double())
                given = given.times(factors)
            for name in one.readers:
                found[name] = given.marked()
        yield found
    finally:
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(before[name])


def balance(
    form: Form,
    seen: Seen,
    weights: Sequence[NDArray[np.float32]],
    rounded: bool,
    worth: float = 1,
) -> NDArray[np.float32] | None:
    """What to multiply each channel by; None where products are not `worth` times closer for it.

    weights: (input, output) of the linears that are given them.
    rounded: to powers of two.
    """
    import numpy as np

    wide = np.concatenate(weights, axis=1)
    exact = seen.rows @ wide
    # Of each time step by itself: early predictions are several times larger than late ones.
    size = np.asarray([np.square(exact[seen.when == i]).sum() for i in range(len(seen.timesteps))])

    def error(factors: NDArray[np.float32]) -> float:
        made = form.rounded(seen.times(factors), wide / factors[:, None])
        each = np.square(made - exact).sum(1)
        return float((each / size[seen.when].clip(1e-12)).sum())

    most = np.maximum(-seen.low, seen.high).max(0).clip(1e-5)
    least = np.abs(wide).max(1).clip(1e-5)
    best, chosen = error(np.ones_like(most)) / worth**2, None
    for exponent in EXPONENTS:
        powers = np.log2(most**exponent / least ** (1 - exponent))
        powers = (powers.mean() - powers).clip(-MOST, MOST)
        factors = (2.0 ** (powers.round() if rounded else powers)).astype(np.float32)
        if (found := error(factors)) < best:
            best, chosen = found, factors
    return chosen
