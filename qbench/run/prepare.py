"""From a job to a session: the model loaded, every axis of its recipe in effect, and compiled."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from qbench.errors import InputError, Unsupported
from qbench.run import together
from qbench.run.computing import Computing
from qbench.run.job import Job
from qbench.run.session import Session
from qbench.run.stages import Stages
from qbench.units import bytes_text

if TYPE_CHECKING:
    from qbench.meters.flops import Work
    from qbench.optimizations.parallel.groups import Ranks
    from qbench.optimizations.rules import Machine
    from qbench.pipelines.known import Model

RANDOM_NOTE = (
    "weights: random: latency and memory only, which hardly depend on the values of weights (1 % "
    "on an H100); no text encoder was run, and nothing here says anything about quality"
)
BY_CONTENT_NOTE = (
    "{} skips steps by what the latents are: how many, and so the latency, is these random "
    "weights' own and says nothing about the model's"
)
NOT_FUSED_NOTE = "decode.fused is for CogVideoX's VAE; this model's decodes as without it"
NOT_TILED_NOTE = "memory.vae_tiling: pictures of {}x{} are no larger than a tile: none was cut"
NOT_SMOOTHED_NOTE = (
    "calibration: qbench knows no layers of this model that could scale the inputs of its linears, "
    "and FP8 linears take no scale: SmoothQuant changes nothing, and this is plain FP8"
)
STEPS_NOTE = "unit: step: denoise steps were timed and no video was made, so there is no quality"
SPARED_NOTE = (
    "build: the graph had been exported for another recipe, and the {:.1f} s of that are counted "
    "here as well"
)
MIXED_STEPS_NOTE = (
    "unit: step: the cache makes steps of two kinds, and how many of each a video has few steps do "
    "not tell: no speed-up; unit: video has it"
)


def prepare(job: Job, stages: Stages) -> Session:
    """Load, quantize, and compile or build: the recipe in effect on a live pipeline.

    Raises Unsupported where this machine cannot run it, InputError where the input is at fault.
    """
    _check_support(job)
    _know_cpu(job)
    session = _load(job, stages)
    _check_model(session)
    _check_disk(session)
    work = _count_work(session)
    ranks = _apply(session, work)
    if ranks:
        session.lead = together.Lead(ranks)
    _compile(session)
    return session


def prepare_beside(job: Job, stages: Stages) -> tuple[Session, Ranks]:
    """The same on a rank other than the first, which then does as the first says."""
    _check_support(job)
    session = _load(job, stages)
    _check_model(session)
    ranks = _apply(session, None)
    assert ranks is not None
    if session.shares_decode and session.recipe.measure.unit == "video":
        session.pipeline.keep_no_text()
        session.empty()
    else:
        session.keep_denoiser_alone()
    return session, ranks


def _check_support(job: Job) -> None:
    from qbench import support

    support.check(job.draft.recipe.variant, _machine(job))


def _know_cpu(job: Job) -> None:
    """What inductor has to know of this machine before it compiles, kept from run to run."""
    from qbench.optimizations import compilation

    variant = job.draft.recipe.variant
    if job.draft.environment.device == "cpu" and (variant.compile or variant.engine == "aoti"):
        compilation.know_cpu()


def _machine(job: Job) -> Machine:
    """This machine, with the GPUs of all ranks: each process sees only its own."""
    from dataclasses import replace

    from qbench import support

    found = support.this_machine(job.draft.environment.device)
    return replace(found, devices=max(found.devices, len(job.devices)))


def _load(job: Job, stages: Stages) -> Session:
    from qbench.pipelines import schedulers, specs
    from qbench.prompts import tokens

    recipe, device = job.draft.recipe, job.draft.environment.device
    variant, recorder = recipe.variant, stages.recorder
    stages.enter("load")
    _set_up_memory(job)
    stages.start(device)
    model = specs.find(recipe.model)
    pipeline = specs.load(
        model,
        variant.dtype,
        device,
        recipe.weights,
        variant.memory.offload is not None,
        recipe.weights_variant,
        recipe.outliers,
    )
    _check_weights(job, model)
    generation = pipeline.resolve(model, recipe.generation, variant.step_share)
    session = Session(job, stages, model, pipeline, generation)
    _check_step_share(session)
    recorder.put(generation=vars(generation))
    if recipe.weights == "random":
        recorder.note(RANDOM_NOTE)
        cache = variant.cache
        if cache and (cache.by_content or (cache.kind == "mag" and not cache.ratios)):
            recorder.note(BY_CONTENT_NOTE.format(cache.kind))
    else:
        size = (generation.frames, generation.height, generation.width)
        uneven = schedulers.uneven(pipeline.pipe, generation.steps)
        for note in (model.unlearned(*size), uneven):
            if note:
                recorder.note(note)
        for note in tokens.notes(pipeline.pipe.tokenizer, job.prompts, generation.text_tokens):
            recorder.note(note)
    if recipe.measure.unit == "step":
        recorder.note(STEPS_NOTE)
    if recipe.mixes_steps:
        recorder.note(MIXED_STEPS_NOTE)
    stages.leave("load")
    return session


def _check_disk(session: Session) -> None:
    """Refuse to begin what cannot be kept: raw videos are large, and come at the very end."""
    import shutil

    need, folder = session.output_bytes(), session.job.folder
    free = shutil.disk_usage(folder).free
    if need > free:
        made = session.generation
        raise InputError(
            f"prompts.count: {len(session.prompts)} raw videos of {made.frames}x{made.height}x"
            f"{made.width} take {bytes_text(need)}, and {folder} has {bytes_text(free)} "
            "free: choose fewer prompts, or another folder with --out"
        )


def _check_weights(job: Job, model: Model) -> None:
    """The digest in the record must be that of the weights that were loaded."""
    known = job.draft.fingerprints.model
    if known and model.digest(job.draft.recipe.weights) != known:
        raise InputError(f"model {model.source}: its files changed while the sweep was running")


def _set_up_memory(job: Job) -> None:
    """The allocator's settings, and a smaller card where one is to be simulated."""
    from qbench.meters.memory import CONTEXT_BYTES
    from qbench.optimizations import memory

    recipe, device = job.draft.recipe, job.draft.environment.device
    memory.prepare(recipe.variant.memory, device)
    limit = recipe.measure.memory_limit_gib
    if limit is None:
        return
    if device == "cpu":
        raise Unsupported("measure.memory_limit_gib limits a GPU's memory, and there is none")
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    share = (limit * 2**30 - CONTEXT_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def _check_step_share(session: Session) -> None:
    """A share of the steps that is all of them would be the reference under another name."""
    share = session.recipe.variant.step_share
    if share == 1:
        return
    whole = session.pipeline.resolve(session.model, session.recipe.generation).steps
    if session.generation.steps >= whole:
        raise Unsupported(
            f"variant.step_share: {share:g} of {whole} denoise steps is no fewer of them"
        )


def _check_model(session: Session) -> None:
    """Refuse what the machine could run and this model cannot, before any of it is in effect."""
    from dataclasses import replace

    from qbench import support

    run = session.generation
    model = support.model_facts(session.pipeline, run.guided, run.frames)
    machine = replace(_machine(session.job), model=model)
    support.check(session.recipe.variant, machine)


def _count_work(session: Session) -> Work | None:
    """FLOPs and bytes of a step, of the plain denoiser as it was loaded."""
    from qbench.meters import flops

    module = session.pipeline.denoiser
    size = next(module.parameters()).element_size()
    try:
        work = flops.count(module, session.pipeline.step_inputs(session.generation), size)
    except Exception as error:  # a figure less in the record, never a failed run
        session.recorder.note(f"work of a step not counted: {type(error).__name__}")
        return None
    session.recorder.put(work=work.model_copy(update={"linear_flop": {}}))
    return work


def _apply(session: Session, work: Work | None) -> Ranks | None:
    """Put every axis of the recipe in effect but for what the compiler, or an engine, does.

    Returns the ranks that share the work, where there are several.
    """
    from qbench.engines import exported
    from qbench.optimizations import axes, memory, quantization
    from qbench.optimizations.calibration import Occasion
    from qbench.optimizations.vae import patch

    stages, recorder, variant = session.stages, session.recorder, session.recipe.variant
    stages.enter("quantize")
    if variant.quantize and work:
        linears = set(quantization.chosen(session.pipeline.denoiser, variant.quantize))
        recorder.facts({"quantized_flop_share": work.share(linears)})
    if variant.exported:
        recorder.facts(
            exported.install(session.pipeline, session.recipe, session.model, session.device)
        )
    if quantization.smooths_nothing(session.pipeline, variant.quantize):
        recorder.note(NOT_SMOOTHED_NOTE)
    occasion = Occasion(session.generation, session.model, tuple(session.prompts))
    outside, steps = exported.outside(variant), session.generation.steps
    together.meet(session.job)
    applied = axes.apply(session.pipeline, outside, session.device, steps, occasion)
    recorder.facts(applied.facts)
    if applied.cached:
        session.computing = Computing(applied.cached, work)
        if applied.cached.ratios:
            recorder.facts({"calibration_s": applied.cached.calibration_s})
    if applied.sparse:
        session.counted = applied.sparse.facts
    if variant.decode.fused and not patch.fuses(session.pipeline.pipe.vae):
        recorder.note(NOT_FUSED_NOTE)
    size = session.generation.height, session.generation.width
    if variant.memory.vae_tiling and memory.tiles_nothing(session.pipeline.pipe.vae, *size):
        recorder.note(NOT_TILED_NOTE.format(*size))
    if applied.ranks:
        stages.traffic = applied.ranks.traffic
    gc.collect()
    stages.leave("quantize")
    return applied.ranks


def _compile(session: Session) -> None:
    """Build the engine, or compile; the compiler works at the first step, so one is made."""
    from qbench.engines import exported
    from qbench.meters.memory import stored_bytes

    stages, variant, spared_s = session.stages, session.recipe.variant, 0.0
    stages.enter("compile")
    if variant.engine and not variant.exported:
        from qbench import engines

        first = session.encode([0]), session.noise([0])
        folder = session.job.folder / "engine"
        facts = engines.build(session.pipeline, session.generation, *first, session.recipe, folder)
        session.recorder.facts(facts)
        spared_s = facts.get(engines.SPARED, 0.0)
        if spared_s > 0:
            session.recorder.note(SPARED_NOTE.format(spared_s))
    if (variant.left_python or variant.compile) and not exported.holds_compiled(variant):
        session.denoise(session.encode([0]), [0], steps=1)
        stages.leave("compile", spared_s)
    gc.collect()
    session.recorder.put(weights_bytes=stored_bytes(session.pipeline.denoiser))
