"""The one training loop: paced by the clock, so that a budget in minutes is what it costs.

A checkpoint holds everything that a later call needs to go on where this one stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


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


def fit(
    loss_of_batch: Callable[[], torch.Tensor],
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
) -> int:
    """Train `module` for `seconds` in all, earlier calls counted in. Returns the steps taken.

    The learning rate climbs over the first 2 % of the time and falls to zero along a half cosine.
    With `ema` above zero, the averaged weights are what `module` holds afterwards.
    check: called every `check_s` seconds with the weights as they would be kept, in the order of
    `module.parameters()`; what it takes is part of the time.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=peak_lr,
        betas=(0.9, 0.99),
        weight_decay=weight_decay,
        fused=next(module.parameters()).is_cuda,
    )
    average = Average(module, ema) if ema else None
    steps, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        steps, spent = state["steps"], state["spent"]
        if average:
            average.shadow = [w.to(p) for w, p in zip(state["ema"], average.shadow, strict=True)]
        print(f"{label}: resumed at step {steps}, {spent:.0f} s", flush=True)

    def save() -> None:
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
    checked = spent
    while spent < seconds:
        share = spent / seconds
        lr = peak_lr * min(1.0, share / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = loss_of_batch()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        steps += 1
        if average:
            average.update(module, steps)
        if steps % 8 == 0:  # reading the loss waits for the device, so the clock is honest
            value = loss.item()
            running = value if not running else 0.95 * running + 0.05 * value
            now = time.monotonic()
            spent, last = spent + now - last, now
            if spent - reported > max(10.0, seconds / 20):
                reported = spent
                print(f"{label}: {spent:.0f} s, step {steps}, loss {running:.5f}", flush=True)
            if check and spent - checked > check_s:
                check(average.shadow if average else list(module.parameters()))
                checked = spent
            if now - saved > 120:
                save()
                saved = now
    save()
    if average:
        average.copy_to(module)
    module.eval()
    print(f"{label}: done, {steps} steps in {spent:.0f} s, loss {running:.5f}", flush=True)
    return steps
