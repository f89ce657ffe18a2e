"""The one training loop: paced by the clock, so that a budget in minutes is what it costs.

A checkpoint holds everything that a later call needs to go on where this one stopped. Started by
`python -m torch.distributed.run`, every process trains on batches of its own and all keep the same
weights: gradients are averaged in one go, which for models as small as these takes far less than a
step, and the first process's clock is everybody's.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, this one among them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average(self, module: nn.Module) -> None:
        """Every gradient becomes its mean over all processes."""
        if self.size == 1:
            return
        found = [p.grad for p in module.parameters() if p.grad is not None]
        flat = _flatten_dense_tensors(found)
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(found, _unflatten_dense_tensors(flat, found), strict=True):
            gradient.copy_(mean)

    def agreed(self, value: float, device: torch.device) -> float:
        """The first process's value."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def wait(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


def join(device: str) -> Ranks:
    """This process among those that `torch.distributed.run` started; alone where nothing did.

    On GPUs each has the one of its number, from here on the current one.
    """
    if "LOCAL_RANK" not in os.environ:
        return Ranks()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


class Average(nn.Module):
    """Exponential moving average of a module's weights, warmed up so that it forgets the start."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.shadow = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, list(module.parameters()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for target, source in zip(module.parameters(), self.shadow, strict=True):
            target.copy_(source)


def resumed_at(checkpoint: Path) -> tuple[int, float]:
    """Steps taken before and their seconds; by the steps, a stage can draw clips of its own."""
    if not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)
    return int(state["steps"]), float(state["spent"])


def fit(
    loss_of_batch: Callable[[], torch.Tensor | Iterable[torch.Tensor]],
    module: nn.Module,
    *,
    seconds: float,
    peak_lr: float,
    checkpoint: Path,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    label: str = "",
    check: Callable[[list[torch.Tensor]], None] | None = None,
    check_s: float = 60.0,
    warmup: float = 0.02,
    stage_s: float = math.inf,
    ranks: Ranks = Ranks(),
) -> int:
    """Train `module` for `seconds` in all, earlier calls counted in. Returns the steps taken.

    The learning rate climbs over the `warmup` share of the time and falls to zero along a half
    cosine. Weights that were trained before want a longer one: Adam's first steps go by the sign of
    few gradients.
    With `ema` above zero, the averaged weights are what `module` holds afterwards.
    loss_of_batch: one loss, or several that are summed: each is let go before the next is computed.
    One that takes no gradient has left its own behind (`mixture.Captured`).
    stage_s: seconds of this call, where another is to go on from its checkpoint.
    check: called every `check_s` seconds with the weights as they would be kept, in the order of
    `module.parameters()`; what it takes is part of the time.
    """
    device = next(module.parameters()).device
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=peak_lr,
        betas=(0.9, 0.99),
        weight_decay=weight_decay,
        fused=device.type == "cuda",
    )
    average = Average(module, ema) if ema else None
    steps, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        steps, spent = state["steps"], state["spent"]
        if average:
            average.shadow = [w.to(p) for w, p in zip(state["ema"], average.shadow, strict=True)]
        print(f"{label}: resumed at step {steps}, {spent:.0f} s", flush=True)

    def save() -> None:
        if not ranks.first:
            return
        state = {
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "steps": steps,
            "spent": spent,
            "ema": average.shadow if average else [],
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)

    module.train()
    last, saved, reported, running = time.monotonic(), time.monotonic(), 0.0, 0.0
    checked, end = spent, min(seconds, spent + stage_s)
    while spent < end:
        share = spent / seconds
        lr = peak_lr * min(1.0, share / warmup + 0.01) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = lr
        made = loss_of_batch()
        optimizer.zero_grad(set_to_none=False)  # a captured graph adds to them where they are
        loss = torch.zeros((), device=device)
        for part in [made] if isinstance(made, torch.Tensor) else made:
            if part.requires_grad:
                part.backward()
            loss += part.detach()
        ranks.average(module)
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if average:
            average.update(module, steps)
        if steps % 8 == 0:  # reading the loss waits for the device, so the clock is honest
            value = loss.item()
            running = value if not running else 0.95 * running + 0.05 * value
            now = time.monotonic()
            spent, last = ranks.agreed(spent + now - last, device), now
            if ranks.first and spent - reported > max(10.0, seconds / 20):
                reported = spent
                print(f"{label}: {spent:.0f} s, step {steps}, loss {running:.5f}", flush=True)
            if check and spent - checked > check_s:
                check(average.shadow if average else list(module.parameters()))
                checked = spent
            if now - saved > 120:
                save()
                saved = now
    save()
    ranks.wait()
    if average:
        average.copy_to(module)
    module.eval()
    if ranks.first:
        print(f"{label}: {steps} steps in {spent:.0f} s, loss {running:.5f}", flush=True)
    return steps
