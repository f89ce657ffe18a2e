"""Denoise steps as the unit of a run: `measure.unit: step`, and the reference that takes turns.

All steps belong to one video: the pipeline's own loop runs, and stops after each of its steps.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from qbench.meters.clock import UnitTimer
from qbench.meters.nvml import GaugeMeter
from qbench.quality.statistics import summarise
from qbench.results.record import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from qbench.run.session import Run


def measure(run: Run) -> None:
    """Timed denoise steps, all of one video: the pipeline's own loop, stopped after each."""
    measured = run.recipe.measure
    count = 1 + measured.warmup + measured.repeats
    run.emit("plan", steps=count)
    run.enter("first call")
    timer, gauges = UnitTimer(run.device), GaugeMeter(run.device)
    device: list[float] = []
    host: list[float] = []

    def on_step(i: int) -> None:
        by_device, by_host = timer.end()
        gauges.end()
        run.emit("step")
        if i == 0:
            run.facts["first_call_s"] = by_host + run.built_s()
        if i > measured.warmup:
            device.append(by_device)
            host.append(by_host)
        if i + 1 < count:
            if i == measured.warmup:
                run.peaks.lap()  # what came before is not steady
            if i >= measured.warmup:
                run.enter("steady", step=i, steps=measured.repeats)
                run.wait_turn(0)
                gauges.begin()
            timer.begin()

    inputs = _denoiser_alone(run)
    timer.begin()
    run.denoise(*inputs, on_step, steps=count)
    run.facts["stages"]["denoise"] = Stage(seconds=host, peak=run.peaks.lap())
    run.facts |= {
        "step_s": [device],
        "step_host_s": host,
        "step": summarise(device, of="mean" if run.recipe.variant.cache else "median"),
        "gauges": gauges.gauges(),
    }
    run.pair(host)


def _denoiser_alone(run: Run) -> tuple[Any, Any]:
    """The first video's inputs. What other stages hold leaves the device: a step needs none."""
    import torch

    inputs = run.first_inputs()
    run.pipeline.vae = run.pipeline.text_encoder = None
    gc.collect()
    if run.device == "cuda":
        torch.cuda.empty_cache()
    return inputs


def pace(run: Run) -> None:
    """Be the reference: a unit for every number that comes in, until the sweep ends it."""
    listen = run.listen
    assert listen is not None
    run.prepare()
    if run.recipe.measure.unit == "step":
        _pace_steps(run, listen)
        return
    run.first_and_warm_up()
    run.emit("ready")
    while True:
        _, _, seconds, _ = run.video([listen()])
        run.emit("paced", seconds=sum(seconds.values()))


def _pace_steps(run: Run, listen: Callable[[], int]) -> None:
    timer, warmup = UnitTimer(run.device), run.recipe.measure.warmup

    def on_step(i: int) -> None:
        _, seconds = timer.end()
        if i == warmup:
            run.emit("ready")
        elif i > warmup:
            run.emit("paced", seconds=seconds)
        if i >= warmup:
            listen()
        timer.begin()

    inputs, most = _denoiser_alone(run), run.pipeline.scheduler.config.num_train_timesteps
    timer.begin()
    while True:
        run.denoise(*inputs, on_step, steps=most)
