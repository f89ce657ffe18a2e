"""What a run takes, as far as its recipe tells: devices, and work that can be shared or not."""

from __future__ import annotations

import math

from qbench.pipelines import specs
from qbench.pipelines.known import Model
from qbench.run.parts import Load
from qbench.run.plan import Planned

FEWEST = 8  # videos that are worth a part of their own
# Work in which a device is about as long as a part takes to start: on an H100 some 200 videos of
# the bundled model, and less than one of CogVideoX-2B. A CPU has done nothing by then.
START = {"cuda": 300.0, "cpu": 0.0}
BUILT = 4  # times as many where each part compiles or calibrates first
# Small videos that a cache will have made one by one leave a GPU waiting for launches: on an H200
# each of the bundled model takes about as much longer than one of a batch.
ALONE = {"cuda": 5, "cpu": 1}
SMALL = 1.0  # million pixels: a denoise step of less is over before the next one is launched
# As many times as long in FP32 as in BF16, on an H200: a step of CogVideoX-2B takes 6.2 s for 0.63;
# one of the bundled model is too narrow for tensor cores to gain as much, and with small videos
# waits for its launches in either.
PRECISE, PRECISE_BUNDLED, PRECISE_SMALL = 10.0, 2.0, 1.3
# Steps that a device takes in the time that a video's figures do, beside the reference's: 23 s of
# 2,048 videos that were made in 85 s, of 20 steps each. Half of it is for the comparison.
JUDGED = 5.0


def load_of(item: Planned, device: str) -> Load:
    """What a run takes, in the work of a million pixels through a denoise step."""
    recipe, measure, prompts = item.recipe, item.recipe.measure, len(item.prompts.prompts)
    model = specs.find(recipe.model)
    shape = specs.video_shape(model, recipe.generation)
    pixels = math.prod(shape) / 1e6 if shape else 1.0
    steps = 1 if measure.unit == "step" else recipe.generation.steps or model.steps
    variant = recipe.variant
    small = pixels < SMALL
    precise = variant.dtype == "fp32" and device == "cuda"
    video = pixels * steps * variant.step_share * (_slower(model, small) if precise else 1.0)
    compared = measure.unit == "video" and recipe.weights == "pretrained"
    turns = 2 if measure.interleave and measure.timing and not recipe.is_reference else 1
    judged = pixels * prompts * JUDGED * compared * (0.5 if recipe.is_reference else 1.0)
    rest = max(0, prompts - measure.repeats) if compared else 0
    alone = ALONE[device] if variant.one_by_one and small else 1
    batch = 1 if variant.one_by_one else recipe.quality.batch
    calibrated = variant.quantize is not None and variant.quantize.calibration is not None
    built = BUILT if variant.compile or calibrated else 1
    start = built * START[device]
    more = video * alone  # what each of the videos past the timed ones takes
    split = not variant.left_python and variant.parallel is None
    # A GPU a rank; on a CPU ranks share the threads of one run.
    units = variant.parallel.ranks if variant.parallel and device == "cuda" else 1
    return Load(
        name=recipe.name,
        group=recipe.name if recipe.is_reference else recipe.reference or recipe.name,
        reference=recipe.is_reference,
        device=device,
        units=units,
        fixed=video * (1 + measure.warmup + turns * measure.repeats)
        + judged
        + more * rest * (not split),
        shared=more * rest * split,
        least=max(start, built * more * max(FEWEST, batch)),
        start=start,
        # A CPU is one device, whose timed runs would wait for parts, and parts for them.
        early=device == "cuda" or not measure.timing,
    )


def _slower(model: Model, small: bool) -> float:
    """How many times as long a GPU takes in FP32 as in BF16. small: under SMALL pixels a video."""
    if small:
        return PRECISE_SMALL
    return PRECISE_BUNDLED if model.world else PRECISE


def seats_of(load: Load) -> int:
    """How many single devices the run, in as many parts as it can be, has a use for at once."""
    alone = load.units > 1 or not load.early  # on a CPU timed runs wait for each other
    return 0 if alone else max(1, int(load.shared / load.least))
