"""Why a run is as fast, and as large, as it is: plain sentences from its record and its profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from qbench import textfile
from qbench.errors import InputError, nearest
from qbench.optimizations import attention, axes, schemes
from qbench.results import archive, store
from qbench.results.record import VIDEO_STAGES
from qbench.units import bytes_text

if TYPE_CHECKING:
    from qbench.meters.profile import Class, Profile
    from qbench.recipe.schema import Variant
    from qbench.results.ranking import Ranking
    from qbench.results.record import Record

STREAM = "memory.offload: group, which streams the blocks"
FRAGMENTS = "memory.expandable_segments: true, which loses little to fragments"
COMPILED = "## Call CompiledFxGraph"  # on a CPU, the profiler's name for all that inductor fused
SLOW = 0.1  # of its steps that a rank spends less in exchanges than another: it is waited for
LAYERS = 5  # of an engine, that are named
ENCODER = "memory.offload: model keeps the text encoder off the GPU but for its own stage"
FUSED = "decode.fused: true, which decodes the same video in less memory, and faster"
STRIPS = "decode.strips: true, which decodes the same video in strips"
SLICES = "memory.vae_slicing: true, which decodes frame by frame"
TILES = "memory.vae_tiling: true, which decodes in tiles, takes least and changes the video"


def explain(place: Path) -> tuple[list[str], Ranking]:
    """Paragraphs about the run at `place`, and the ranking of what lies beside it.

    Raises InputError where there is no finished run.
    """
    from qbench.results.profiles import profiles_of
    from qbench.results.ranking import rankings

    path = _record_of(place)
    try:
        record = store.read(path)
    except store.Unreadable as error:
        raise InputError(str(error)) from None
    found, _ = store.read_all(store.siblings(path), compact=True)
    own = record.fingerprints.ranking()
    alike = [item for item in found if item[1].fingerprints.ranking() == own]
    if record.run not in {item[1].run for item in alike}:
        alike.append((path, record))
    (ranking,) = rankings(alike)
    return paragraphs(record, ranking, profiles_of(ranking)), ranking


def paragraphs(
    record: Record, ranking: Ranking, profiles: Mapping[str, Profile], *, others: bool = True
) -> list[str]:
    """What is said about one run of a ranking.

    profiles: by run, as `profiles_of` reads them. others: whether what the variants beside this one
    could gain is said too.
    """
    if record.status not in ("ok", "invalid"):
        return [_failure(record)]
    said = [_step(record, ranking), _computed(record), _shares(record, profiles.get(record.run))]
    reference = ranking.reference
    if reference is not None and reference.run in profiles:
        said.append(_gains(record, ranking, profiles[reference.run], others))
    said += [*record.notes, _ranks(record), _gauges(record)]
    said += [_payback(record, ranking), _memory(record)]
    return [text for text in said if text]


def _record_of(place: Path) -> Path:
    """The record that a run's folder, its record, or a run in an archive stands for."""
    if archive.is_run(place):
        above, run = archive.split(place) or (place, "")
        try:
            known = archive.runs(above)
        except (OSError, ValueError) as error:
            raise InputError(f"{above}: not an archive of records: {error}") from None
        if run not in known:
            raise InputError(f"{place}: no run {run!r} in it{nearest(run, known)}")
        return place / store.FILE
    if archive.named(place.name) and textfile.is_file(place):
        raise InputError(f"{place}: many runs; name one of them, as in {place}/RUN")
    is_folder = textfile.is_folder(place)
    packed = is_folder and textfile.is_file(place / archive.FILE)
    if packed and not textfile.is_file(place / store.FILE):
        raise InputError(f"{place}: many runs; name one of them, as in {place / archive.FILE}/RUN")
    path = textfile.resolved(place) / store.FILE if is_folder else place
    if store.absent(path):
        said = f"{place}: no {store.FILE} there; name the folder of one run"
        raise InputError(textfile.hidden(path) or said)
    return path if archive.split(path) else textfile.resolved(path)


def _failure(record: Record) -> str:
    text = (
        f"{record.recipe.name} did not finish: {record.status} in {record.stage or 'start'}: "
        f"{record.reason}."
    )
    lower = [_lower(record, record.stage)]
    if record.facts.get("fragments_bytes", 0.0) > 2**30:
        expandable = record.recipe.variant.memory.expandable_segments
        lower = ["" if expandable else FRAGMENTS, *lower]
    told = "; or ".join(filter(None, lower))
    return f"{text} What lowers it: {told}." if told else text


def _computed(record: Record) -> str:
    """What a cache left to compute."""
    found = record.computed
    if found is None:
        return ""
    text = (
        f"Its cache ({found.library}) left {found.steps:.3g} of {len(found.by_step)} denoise steps "
        "to compute, by the FLOPs of the blocks"
    )
    if found.least != found.most:
        text += f", from {found.least:.3g} to {found.most:.3g} of a video"
    full = [str(step + 1) for step, share in enumerate(found.by_step) if share > 0.999]
    return f"{text}; in full: {', '.join(full) or 'none'}."


def _step(record: Record, ranking: Ranking) -> str:
    seconds = ranking.timing(record).step_s
    if not seconds:
        return ""
    rate, share = record.achieved_flop_per_s(seconds), None
    name, device = record.recipe.name, record.environment.device_name
    text = f"A denoise step of {name} takes {seconds * 1000:.4g} ms on {device}."
    if record.work and rate:
        text += (
            f" It is {record.work.flop / 1e12:.3g} TFLOPs, "
            f"{record.work.attention_flop / record.work.flop:.0%} of them in attention: "
            f"{rate / 1e12:.3g} TFLOP/s."
        )
        share = record.mfu(seconds)
    if share and rate:
        kinds = "/".join(sorted(axes.arithmetic(record.recipe.variant))).upper()
        text += (
            f" That is an MFU of {share:.0%}, of the peak measured here for GEMM in the fastest "
            f"dtype that it uses ({kinds}: {rate / share / 1e12:.4g} TFLOP/s); at that rate a step "
            f"would take {seconds * share * 1000:.4g} ms."
        )
    if "attention_density" in record.facts:
        share = record.facts["attention_density"]
        text += f" Attention computed {share:.0%} of its blocks; FLOPs and MFU count all of them."
    return text


def _shares(record: Record, profile: Profile | None) -> str:
    if profile is None:
        return ""
    seconds = profile.seconds()
    total = sum(seconds.values())
    if not total:
        return ""
    named: tuple[tuple[Class, str], ...] = (
        ("gemm", "GEMM"),
        ("attention", "attention"),
        ("pointwise", "norms and pointwise work"),
        ("movement", "memory movement"),
    )
    parts = ", ".join(f"{words} {seconds[kind] / total:.0%}" for kind, words in named)
    text = f"Of its kernels' time go to {parts}."
    step = record.step_seconds()
    if record.environment.device == "cuda" and step and total < 0.9 * step:
        text += (
            f" The kernels fill {total / step:.0%} of the step: the GPU waits for the host, so "
            "quantizing gains little here and compiling or variant.cuda_graph more."
        )
    longest = max(profile.kernels, key=lambda kernel: kernel.seconds, default=None)
    if longest is None:
        return text
    if longest.name.startswith(COMPILED):
        text += f" The longest part is inductor's compiled code ({longest.seconds / total:.0%})."
    else:
        text += f" The longest kernel is {longest.name} ({longest.seconds / total:.0%})."
    if not profile.layers:
        return text
    layers = "; ".join(
        f"{layer.name}, {layer.kind} of {layer.precision} ({layer.seconds / total:.1%})"
        for layer in profile.layers[:LAYERS]
    )
    return f"{text} The longest layers by the runtime's own profile: {layers}."


def bound(profile: Profile, reference: Record, variant: Variant, share: float) -> float | None:
    """The largest speed-up of a step that this variant could bring (Amdahl 1967).

    What it changes takes as long as it does at the machine's peak, or nothing where it can be
    fused; what it leaves alone takes as long as in the reference's `profile`. Where it captures
    CUDA graphs the GPU waits for the host no more. `share` is the share of all FLOP that is
    quantized.
    """
    work, ceilings = reference.work, reference.ceilings
    if work is None or ceilings is None:
        return None
    rates, seconds = ceilings.product_flop_per_s, dict(profile.seconds())
    before = sum(seconds.values())
    if variant.captures_graphs and reference.environment.device == "cuda":
        before = max(before, reference.step_seconds() or 0.0)
    quantized = schemes.find(variant.quantize).activations if variant.quantize else None
    if quantized and quantized in rates:
        part = min(1.0, share * work.flop / work.product_flop)
        floor = part * work.product_flop / rates[quantized]
        kept = (1 - part) * seconds["gemm"]
        seconds["gemm"] = min(seconds["gemm"], floor + kept)
    if variant.attention != "auto":
        attended = attention.KERNELS[variant.attention].arithmetic or str(variant.dtype)
        if attended in rates:
            floor = work.attention_flop / rates[attended]
            seconds["attention"] = min(seconds["attention"], floor)
    if variant.compile:
        seconds["pointwise"] = seconds["movement"] = 0.0
    after = sum(seconds.values())
    if variant.parallel:
        after /= variant.parallel.ranks
    if variant.cache and variant.cache.interval:
        after /= variant.cache.interval
    return before / after if after else None


def _ranks(record: Record) -> str:
    """What each process did of a video that several made, and which of them the others wait for."""
    if not record.ranks:
        return ""
    parts, waits = [], []
    for one in record.ranks:
        steps = [step for video in one.step_s for step in video]
        busy, share = sum(steps), 0.0
        peak = max((record.held_bytes(peak) or 0 for peak in one.peaks.values()), default=0)
        if steps and busy:
            share = sum(one.exchange_s) / busy
            waits.append((share, one.rank))
            parts.append(
                f"rank {one.rank}: {1000 * median(steps):.4g} ms a step, exchanges {share:.0%} as "
                f"long as its steps, {bytes_text(peak)}"
            )
    text = f"{len(record.ranks)} processes make each video together: {'; '.join(parts)}."
    if waits and max(waits)[0] - min(waits)[0] > SLOW:
        text += (
            f" Rank {min(waits)[1]} is the slow one: the others spend more time in exchanges, "
            "waiting for it."
        )
    return text


def _gains(record: Record, ranking: Ranking, profile: Profile, others: bool) -> str:
    """What every variant beside this run could gain at most, and what it did gain."""
    reference = ranking.reference
    assert reference is not None
    lines: list[str] = []
    unbounded: list[str] = []
    shown = [r for r in ranking.records if r.status == "ok" and r is not reference]
    if not others:
        shown = [r for r in shown if r.run == record.run]
    shown.sort(key=lambda r: r.run != record.run)
    for other in shown:
        share = other.facts.get("quantized_flop_share", 0.0)
        most = bound(profile, reference, other.recipe.variant, share)
        ratio = ranking.timing(other).speed_up
        if most is None or ratio is None or other.recipe.variant.left_python:
            continue
        if other.recipe.variant.dtype == reference.recipe.variant.dtype:
            lines.append(f"  {other.recipe.name}: at most {most:.2f}x, gained {ratio.value:.2f}x")
        else:
            unbounded.append(f"{other.recipe.name} {ratio.value:.2f}x")
    if unbounded:  # the profile is of the reference's dtype
        lines.append(f"  no bound, for they have another dtype: {', '.join(unbounded)} gained")
    if not lines:
        return ""
    head = (
        f"What could be gained over {reference.recipe.name}, if all that a variant changes ran at "
        "the machine's peak rate and all that can be fused cost nothing, and what was gained:"
    )
    return "\n".join([head, *lines])


def _memory(record: Record) -> str:
    peaks = {
        name: record.held_bytes(stage.peak) or 0
        for name, stage in record.stages.items()
        if name in VIDEO_STAGES
    }
    if not any(peaks.values()):
        return ""
    top = max(peaks, key=lambda name: peaks[name])
    each = ", ".join(f"{name} {bytes_text(size)}" for name, size in peaks.items())
    text = f"Memory peaks in {top} ({each})"
    if record.weights_bytes:
        text += f"; the denoiser's weights are {bytes_text(record.weights_bytes)} of it"
    if record.environment.device == "cpu":
        return text + ". On a CPU this is the whole process, its libraries included."
    lower = _lower(record, top)
    return f"{text}. What lowers it: {lower}." if lower else f"{text}."


def _lower(record: Record, stage: str) -> str:
    """What would lower this stage's peak and is not in the recipe yet; empty where all is."""
    variant = record.recipe.variant
    streamed, tiled = variant.memory.offload == "group", variant.memory.vae_tiling
    whole, same = variant.memory.vae_slicing, SLICES  # the same video, in less memory
    if str(record.generation.get("scheduler")).startswith("CogVideoX"):
        whole = variant.decode.strips or variant.decode.fused
        same = FUSED if record.environment.compute_capability == "9.0" else STRIPS
    options = {  # whether the recipe has it, or better, and what it is
        "text_encode": [(variant.memory.offload is not None, ENCODER)],
        "denoise": [
            (variant.quantize is not None or streamed, "FP8 or INT8 weights"),
            (streamed, STREAM),
        ],
        "decode": [(whole or tiled, same), (tiled, TILES)],
    }
    return ", or ".join(text for has, text in options.get(stage, []) if not has)


def _payback(record: Record, ranking: Ranking) -> str:
    from qbench.results.speed import payback_videos

    reference = ranking.reference
    if reference is None:
        return ""
    shown = ranking.timing(record), ranking.timing(reference)
    videos = payback_videos(record, reference, *shown)
    if videos is None:
        return ""
    said = f"Quantizing and compiling have paid for themselves after {_videos(videos)}"
    if record.first_call_warm_s is None:
        return f"{said}."
    warm = record.model_copy(update={"first_call_s": record.first_call_warm_s})
    again = payback_videos(warm, reference, *shown)
    return f"{said}; where compilers find their caches, after {_videos(again or 0)}."


def _videos(count: float) -> str:
    if count <= 1:
        return "the first video"
    return f"{count:.1f} videos" if count < 10 else f"{count:.0f} videos"


def _gauges(record: Record) -> str:
    gauges = record.gauges
    if gauges is None or gauges.power_w is None:
        return ""
    text = f"The card drew {gauges.power_w:.0f} W"
    if gauges.sm_clock_mhz is not None:
        text += f" at {gauges.sm_clock_mhz:.0f} MHz"
    if energy := gauges.mean_energy_j():
        text += f", {energy:.3g} J a {record.recipe.measure.unit}"
    for reason, share in gauges.throttled.items():
        text += f"; slowed by its {reason} in {share:.0%} of the readings"
    return text + "."
