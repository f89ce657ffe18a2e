"""Training at several lengths: what a stage draws, weighs and goes on from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts.train.loop import fit, resumed_at
from scripts.train.mixture import Mixture, Share, share


def test_a_share_is_read_as_it_is_written() -> None:
    assert share("49x256:12:4:17") == Share((49, 256), 12, 4, 17)
    assert share("17x64:240") == Share((17, 64), 240)
    for text in ("17x64", "17:4", "17x64:0", "17x64:1:1:1:1", "ax64:1"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as"):
            share(text)


def test_a_length_with_large_losses_pulls_no_harder_than_the_first() -> None:
    """Losses w^2 * 0.02 and w^2 * 5: the gradient is that of the first, twice."""
    weight = torch.tensor(1.0, requires_grad=True)
    parts = {Share((17, 64), 1): 0.02, Share((49, 256), 1, every=2): 5.0}
    mixture = Mixture(
        {part: lambda scale=scale: scale * weight**2 for part, scale in parts.items()}
    )
    for taken in (2, 1, 2):
        weight.grad = None
        losses = list(mixture())
        assert len(losses) == taken
        torch.stack(losses).sum().backward()
        assert weight.grad is not None
        assert weight.grad.item() == pytest.approx(taken * 2 * 0.02)
    assert mixture.told() == "17x64 0.02000, 49x256 5.00000"


def test_a_stage_goes_on_where_the_one_before_it_stopped(tmp_path: Path) -> None:
    """Two stages take all steps of the optimizer between them, and the losses of a step add up."""
    module, kept = torch.nn.Linear(3, 1), tmp_path / "kept.pt"
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    assert resumed_at(kept) == (0, 0.0)

    def losses() -> Iterator[torch.Tensor]:
        for part in inputs.split(8):
            yield (module(part) - part.sum(1, keepdim=True)).square().mean()

    def trained(stage_s: float) -> int:
        return fit(
            losses, module, seconds=0.6, peak_lr=0.1, checkpoint=kept, ema=0.9, stage_s=stage_s
        )

    before = torch.stack(list(losses())).sum().item()
    first = trained(0.2)
    assert first == resumed_at(kept)[0]
    assert trained(10.0) == resumed_at(kept)[0] > first
    assert torch.stack(list(losses())).sum().item() < 0.01 * before
    assert trained(10.0) == resumed_at(kept)[0]  # nothing is left to train


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_loss_draws_anew_and_leaves_the_gradients_of_the_plain_one() -> None:
    generator = torch.Generator("cuda").manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
    module.cuda()

    def loss() -> torch.Tensor:
        given = torch.randn(64, 8, device="cuda", generator=generator)
        pick = torch.randint(8, (64, 1), device="cuda", generator=generator)
        return (module(given) - given.gather(1, pick)).square().mean()

    def taken(mixture: Mixture) -> tuple[list[float], torch.Tensor]:
        module.zero_grad(set_to_none=False)
        generator.manual_seed(7)
        losses = []
        for _ in range(3):
            for value in mixture():
                if value.requires_grad:
                    value.backward()
                losses.append(value.item())
        return losses, torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]

    parts = {Share((17, 64), 64): loss}
    plain, gradient = taken(Mixture(parts))
    mixture = Mixture(parts)
    mixture.capture(generator)
    captured, graphs = taken(mixture)
    assert len(set(captured)) == 3
    assert captured == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(graphs, gradient, rtol=1e-4, atol=1e-5)
