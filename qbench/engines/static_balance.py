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
    from torch import Tensor

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
            weights = [layer.weight.detach().float().T for layer in layers]
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
    form: Form, seen: Seen, weights: Sequence[Tensor], rounded: bool, worth: float = 1
) -> NDArray[np.float32] | None:
    """What to multiply each channel by; None where products are not `worth` times closer for it.

    Computed on a GPU where there is one: a denoiser has hundreds of these products.

    weights: (input, output) of the linears that are given them, FP32.
    rounded: to powers of two.
    """
    import numpy as np
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wide = torch.cat([weight.to(device) for weight in weights], dim=1)
    exact = torch.from_numpy(seen.rows).to(device) @ wide
    when = torch.from_numpy(seen.when).to(device)
    # Of each time step by itself: early predictions are several times larger than late ones.
    size = exact.new_zeros(len(seen.timesteps)).index_add(0, when, exact.square().sum(1))
    size = size[when].clamp(min=1e-12)

    def error(factors: NDArray[np.float32]) -> float:
        divided = wide / torch.from_numpy(factors).to(device)[:, None]
        each = (form.rounded(seen.times(factors), divided) - exact).square().sum(1)
        return float((each / size).sum())

    most = np.maximum(-seen.low, seen.high).max(0).clip(1e-5)
    least = wide.abs().amax(1).clamp(min=1e-5).cpu().numpy()
    best, chosen = error(np.ones_like(most)) / worth**2, None
    for exponent in EXPONENTS:
        powers = np.log2(most**exponent / least ** (1 - exponent))
        powers = (powers.mean() - powers).clip(-MOST, MOST)
        factors = (2.0 ** (powers.round() if rounded else powers)).astype(np.float32)
        if (found := error(factors)) < best:
            best, chosen = found, factors
    return chosen
