"""What was found of each model: figures from records, and what configurations alone decide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qbench.models import Basis, Cell, Found, Row
from qbench.pipelines.known import KNOWN
from qbench.report.tables import bytes_text, time_text
from qbench.results import archive, store
from qbench.results.record import Record
from scripts.figures import sizes
from scripts.figures.values import PUBLISHED, Fault, evaluate

COG, ZERO, WAN = "cogvideox-2b", "zeroscope-v2-xl", "wan2.1-1.3b"
WORDS = {"cog": COG, "zero": ZERO, "wan": WAN}
MODELS = {COG: "CogVideoX-2B", ZERO: "Zeroscope v2 XL", WAN: "Wan 2.1 1.3B"}
STEPS, ZERO_STEPS, WAN_STEPS = "h100/steps", "h100/zeroscope", "h100/wan"
WAN_FAST, WAN_LARGE, WAN_DECODE = "h200/wan", "h200/wan-14b", "h200/wan-decode"
RANDOM = "--set weights=random --set reference=bf16"
HOURS = 3600.0


def basis() -> str:
    device = evaluate("h100/videos bf16 device").text
    return (
        f"Full-size figures are of one {device}, or of one "
        f"{evaluate('h200/steps bf16 device').text} where the source says so, with random weights "
        "of true size; quality is of "
        "small trained models that ship with qbench: what a full-size checkpoint looks like after "
        "quantization is for those who have one to measure, with the commands given."
    )


def fig(expression: str) -> str:
    return evaluate(expression).text


def known(basis: Basis, text: str, source: str = "", command: str = "") -> Found:
    return Found(text=text, basis=basis, source=source, command=command)


def measured(text: str, source: str) -> Found:
    return known("measured", text, source)


def computed(text: str, source: str = "") -> Found:
    return known("computed", text, source)


def unmeasured(text: str, command: str) -> Found:
    return known("not measured", text, command=command)


def row(name: str, believed: str = "", note: str = "", **cells: tuple[str, list[Found]]) -> Row:
    return row_of(name, cells, believed, note)


def row_of(
    name: str, cells: Mapping[str, tuple[str, list[Found]]], believed: str = "", note: str = ""
) -> Row:
    made = {
        WORDS[word]: Cell(short=short, found=tuple(found)) for word, (short, found) in cells.items()
    }
    return Row(name=name, believed=believed, cells=made, note=note)


def rows() -> list[Row]:
    return [
        _kind(), _architecture(), _parameters(), _disk(), _vram(), _cpu(), _resolutions(),
        _lengths(), _speed(), *_optimizations(), _stability(),
    ]  # fmt: skip


# What configurations decide ----------------------------------------------------------------------


def _kind() -> Row:
    return row(
        "kind",
        cog=("a diffusion transformer over all tokens of the video", []),
        zero=("a 3D UNet over frames, for video-to-video at 1024x576 after zeroscope_v2_576w", [
            known("sourced", "meant to refine what zeroscope_v2_576w made, though it makes videos "
                  "from noise too", "https://huggingface.co/cerspense/zeroscope_v2_XL"),
        ]),
        wan=("a diffusion transformer over all tokens of the video", []),
    )  # fmt: skip


def _architecture() -> Row:
    guided = "two predictions each, with and without the prompt"
    return row(
        "architecture",
        believed="a sketch from memory, in three points unlike the configuration",
        note="Three points of the log's sketch are worth a correction, none of which the model's "
        "name gives away: the VAE of CogVideoX compresses time as well as space, 4 x 8 x 8; its "
        "patches are 1 x 2 x 2, so tokens never span two latent frames; and a video is not made "
        f"in one pass but in {KNOWN[COG].steps} denoise steps, {guided}.",
        cog=(_dit(COG, "joint attention over text and video"), []),
        zero=(_unet(), []),
        wan=(_dit(WAN, "self-attention, then cross-attention to the text"), []),
    )


def _dit(model: str, attends: str) -> str:
    family, configs = sizes.family_of(model)
    config: Any = sizes.denoiser(model).config
    patch = config.patch_size
    spatial = f"1 x {patch} x {patch}" if isinstance(patch, int) else " x ".join(map(str, patch))
    wide = config.num_attention_heads * config.attention_head_dim
    grid = family.grid(configs)
    return (
        f"{config.num_layers} blocks, {config.num_attention_heads} heads of "
        f"{config.attention_head_dim} ({wide} wide), {attends}; VAE 4 x 8 x 8 in time, height and "
        f"width; patches {spatial}; {KNOWN[model].steps} steps; sides in multiples of "
        f"{grid.side}"
    )


def _unet() -> str:
    config: Any = sizes.denoiser(ZERO).config
    channels = ", ".join(map(str, config.block_out_channels))
    return (
        f"UNet of {channels} channels, convolutions and attention over space, over time and to "
        "the prompt; VAE 1 x 8 x 8, every frame by itself; "
        f"{KNOWN[ZERO].steps} steps"
    )


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"


def _parameters() -> Row:
    cells = {}
    for word, model in WORDS.items():
        parts = sizes.parameters(model)
        by_part = ", ".join(f"{name} {_millions(count)}" for name, count in parts.items())
        whole = sum(parts.values())
        cells[word] = (
            f"{_millions(parts['denoiser'])} in the denoiser, {_millions(whole)} in all",
            [computed(by_part)],
        )
    return row_of("parameters", cells)


def _disk() -> Row:
    cells = {}
    outside = {COG: ("time_embedding", "norm", "patch_embed", "proj_out"), ZERO: (), WAN: ()}
    stated = {
        COG: ("h200/steps", ("fp32", "bf16", "int8", "fp8", "int4")),
        ZERO: (ZERO_STEPS, ("bf16", "int8", "fp8")),
        WAN: (WAN_STEPS, ("bf16", "fp8-dynamic")),
    }
    for word, model in WORDS.items():
        parts = sizes.parameters(model)
        folder, recipes = stated[model]
        held = ", ".join(f"{name} {fig(f'{folder} {name} weights')}" for name in recipes)
        rest = sum(count for name, count in parts.items() if name != "denoiser")
        vae = " (the VAE of Wan stays in FP32)" if model == WAN else ""
        whole = 2 * sum(parts.values()) + (2 * parts["vae"] if model == WAN else 0)
        packed = [
            f"{name} {bytes_text(sizes.stored(model, scheme, exclude=outside[model]))}"
            for name, scheme in (("INT4", "int4_weight_only"), ("INT3", "int3_weight_only"))
            if _divides(model, outside[model])
        ]
        found = [
            measured(f"the denoiser as it is stored: {held}", folder),
            computed(f"text encoder and VAE in half precision: {bytes_text(2 * rest)}{vae}"),
        ]
        if packed:
            found.append(
                computed(f"the denoiser with linears packed by qbench: {', '.join(packed)}")
            )
        cells[word] = (f"{bytes_text(whole)} in half precision", found)
    cells["cog"][1].append(
        measured(
            "torchao's INT4 keeps a value a byte: no smaller than INT8; optimum-quanto's takes "
            + fig("h200/steps int4-quanto weights"),
            "h200/steps",
        )
    )
    return row_of("size on disk", cells)


def _divides(model: str, exclude: Iterable[str]) -> bool:
    from qbench.optimizations.builds import PACKED_GROUP
    from qbench.optimizations.quantization import chosen
    from qbench.recipe.schema import Quantize

    wanted = Quantize.model_validate(
        {"backend": "qbench", "scheme": "int4_weight_only", "exclude": list(exclude)}
    )
    linears = chosen(sizes.denoiser(model), wanted).values()
    return all(layer.weight.shape[1] % PACKED_GROUP == 0 for layer in linears)


# What was measured --------------------------------------------------------------------------------


def records(folder: str) -> list[Record]:
    found, unreadable = store.read_all(store.find([PUBLISHED / folder / archive.FILE]))
    if unreadable:
        raise Fault(unreadable[0])
    return [record for _, record in found]


def published(folder: str) -> bool:
    return (PUBLISHED / folder / archive.FILE).exists()


def _vram() -> Row:
    cards: dict[float, list[str]] = {}
    for record in records("h200/cards"):
        limit = record.recipe.measure.memory_limit_gib
        if limit and record.status == "ok":
            cards.setdefault(limit, []).append(record.recipe.name)
    fits = [
        measured(f"on a card of {limit:g} GiB, simulated, ran: {', '.join(sorted(names))}",
                 "h200/cards")
        for limit, names in sorted(cards.items())
    ]  # fmt: skip
    peaks = ", ".join(
        f"{name} {fig(f'h200/memory {name} peak')}"
        for name in ("bf16", "fp8-dynamic", "fast", "offload/fast-tiling", "offload/fast-group")
    )
    encoder = fig("h100/text_encoder.json rows[scheme=bf16].peak.allocated_bytes GiB")
    zero = [
        measured(
            f"one denoise step holds {fig(f'{ZERO_STEPS} bf16 peak')} in BF16 and "
            f"{fig(f'{ZERO_STEPS} fast peak')} with `fast`",
            ZERO_STEPS,
        ),
        known("sourced", "30 frames of 1024x576: 15.3 GB by its card",
              "https://huggingface.co/cerspense/zeroscope_v2_XL"),
    ]  # fmt: skip
    wan = [
        measured(
            f"one denoise step holds {fig(f'{WAN_STEPS} bf16 peak')} in BF16, "
            f"{fig(f'{WAN_STEPS} attention/fast-flash-3 peak')} with FP8 linears",
            WAN_STEPS,
        ),
        measured(f"with `fast` {fig(f'{WAN_FAST} fast peak')}", WAN_FAST),
        measured(
            f"the decode, in FP32 beside the denoiser, holds "
            f"{fig(f'{WAN_DECODE} bf16 decode-peak')} and takes {fig(f'{WAN_DECODE} bf16 decode')}",
            WAN_DECODE,
        ),
    ]
    for model, what, found in (
        (ZERO, "whole videos with their decode, and small cards", zero),
        (WAN, "small cards", wan),
    ):
        found.append(
            unmeasured(
                what,
                "qbench run bf16 offload/model offload/group "
                f"--set model={model} {RANDOM} --set generation.steps=2 "
                "--set measure.memory_limit_gib=16",
            )
        )
    return row(
        "minimum VRAM",
        believed="one figure a model, not measured",
        cog=(
            "8 GiB with offload or `offload/fast-tiling`, 12 GiB with `fast` or in BF16 with "
            "tiles, 24 GiB in BF16 without",
            [
                *fits,
                measured(f"peaks of a video, of what torch allocated: {peaks}", "h200/memory"),
                measured(
                    f"the text encoder by itself peaks at {encoder}, before the rest where it is "
                    "offloaded, else beside it",
                    "h100/text_encoder.json",
                ),
            ],
        ),
        zero=(
            f"more than {fig(f'{ZERO_STEPS} bf16 peak')} plain, which a step takes; the decode "
            "is not measured",
            zero,
        ),
        wan=(
            f"{fig(f'{WAN_DECODE} bf16 decode-peak')} plain, in the decode; a step takes "
            f"{fig(f'{WAN_STEPS} bf16 peak')}",
            wan,
        ),
    )


def _cpu() -> Row:
    """Measured with the bundled model; of the large ones, its rate over their FLOP."""
    folder, recipe = "amd-epyc-2t", "compile"
    tiny = next(r for r in records(folder) if r.recipe.name == recipe)
    assert tiny.work is not None
    assert tiny.step is not None
    rate = tiny.work.flop / tiny.step.median
    cells = {}
    for word, model, source in (
        ("cog", COG, STEPS), ("zero", ZERO, ZERO_STEPS), ("wan", WAN, WAN_STEPS),
    ):  # fmt: skip
        work = next(r.work for r in records(source) if r.recipe.name == "bf16")
        assert work is not None
        flop = work.flop * KNOWN[model].steps
        hours = flop / rate / HOURS
        cells[word] = (
            f"runs, and would take about {hours:,.0f} hours a video on two cores",
            [
                computed(
                    f"{flop / 1e15:.1f} PFLOP a video at the {rate / 1e9:.0f} GFLOP/s that the "
                    "bundled model reaches compiled in BF16",
                    folder,
                )
            ],
        )
    cells["cog"][1].append(
        measured(
            "the bundled CogVideoX of 9.7 million parameters, 17 frames of 64x64: FP32 "
            f"{fig(f'{folder} fp32 video')} a video, compiled {fig(f'{folder} compile video')}, "
            f"ONNX Runtime in INT8 {fig(f'{folder} onnx-int8 video')}, FP16 "
            f"{fig(f'{folder} fp16 video')}",
            folder,
        )
    )
    return row_of("CPU", cells)


def _resolutions() -> Row:
    scaling = "h100/scaling/scaling.json"
    sizes_run = [(240, 368), (320, 480), (480, 720), (608, 960), (720, 1280)]
    costs = ", ".join(
        f"{h}x{w} {fig(_scaled(h, 'bf16'))} ({fig(_scaled(h, 'fp8'))} in FP8)" for h, w in sizes_run
    )
    return row(
        "resolutions",
        believed="one each",
        cog=(
            "any multiple of 16; trained for 480x720; 240x368 to 720x1280 ran",
            [measured(f"a step of 49 frames by height and width, {SCALED}: {costs}", scaling)],
        ),
        zero=(
            "any multiple of 8; trained for 576x1024",
            [
                measured(f"a step of 24 frames: 576x1024 {fig(f'{ZERO_STEPS} bf16 step')}",
                         ZERO_STEPS),
                unmeasured("the cost of others", _elsewhere(ZERO, "height=320", "width=576")),
            ],
        ),
        wan=(
            "any multiple of 16; trained for 480x832",
            [
                measured(f"a step of 81 frames: 480x832 {fig(f'{WAN_STEPS} bf16 step')}",
                         WAN_STEPS),
                unmeasured("the cost of others", _elsewhere(WAN, "height=720", "width=1280")),
            ],
        ),
    )  # fmt: skip


SCALED = "eager, FP8 by qbench's linears and attention alone"


def _scaled(height: int, variant: str, frames: int = 49) -> str:
    return (
        f"h100/scaling/scaling.json rows[variant={variant},frames={frames},height={height}]"
        ".step_s s"
    )


def _elsewhere(model: str, *fields: str) -> str:
    sets = " ".join(f"--set generation.{field}" for field in fields)
    return f"qbench run bf16 fast --set model={model} {RANDOM} --set measure.unit=step {sets}"


def _lengths() -> Row:
    counts = (9, 17, 33, 49, 65, 81, 97)
    costs = ", ".join(
        f"{n} frames {fig(_scaled(480, 'bf16', n))} ({fig(_scaled(480, 'fp8', n))} in FP8)"
        for n in counts
    )
    return row(
        "lengths and frames",
        believed="one each",
        cog=(
            "8n + 1 frames, trained for 49 at 8 a second (6 s); 9 to 97 ran",
            [measured(f"a step at 480x720, {SCALED}: {costs}", "h100/scaling/scaling.json")],
        ),
        zero=(
            "any number of frames, trained for 24",
            [unmeasured("other lengths than 24", _elsewhere(ZERO, "frames=30"))],
        ),
        wan=(
            "4n + 1 frames, trained for 81 at 16 a second (5 s)",
            [unmeasured("other lengths than 81", _elsewhere(WAN, "frames=33"))],
        ),
    )


def _speed() -> Row:
    return row(
        "speed",
        believed="one figure a model, not measured",
        cog=(
            f"{fig('h100/videos bf16 video')} a video in BF16, {fig('h100/videos fast video')} "
            f"with `fast`, {fig('h100/videos fast-cached video')} with `fast-cached`",
            [
                measured("50 steps and the decode, one video after the first call",
                         "h100/videos"),
                known("sourced", "about 90 s on an A100 and 45 s on an H100 by its authors",
                      "https://github.com/zai-org/CogVideo"),
            ],
        ),
        zero=_step_only(ZERO, ZERO_STEPS, "fast"),
        wan=_step_only(
            WAN, WAN_FAST, "fast",
            measured(
                f"Wan 2.1 14B: {fig(f'{WAN_LARGE} bf16 step')} a step in BF16, "
                f"{fig(f'{WAN_LARGE} fast step')} with `fast`, "
                f"{fig(f'{WAN_LARGE} fast speed-up')} as fast",
                WAN_LARGE,
            ),
        ),
    )  # fmt: skip


def _step_only(model: str, folder: str, best: str, *more: Found) -> tuple[str, list[Found]]:
    steps = KNOWN[model].steps
    plain, fast = evaluate(f"{folder} bf16 step"), evaluate(f"{folder} {best} step")
    assert plain.value is not None
    assert fast.value is not None
    return (
        f"{plain.text} a step in BF16, {fast.text} with `{best}`",
        [
            measured(f"{fig(f'{folder} {best} n')} steps each, interleaved with BF16", folder),
            computed(
                f"{steps} steps without the decode: {time_text(steps * plain.value)}, and "
                f"{time_text(steps * fast.value)}"
            ),
            unmeasured(
                "whole videos",
                f"qbench run bf16 {best} --set model={model} {RANDOM} --set measure.repeats=1",
            ),
            *more,
        ],
    )


# Optimizations ------------------------------------------------------------------------------------


def _gains(folder: str, recipes: dict[str, str]) -> Found:
    listed = ", ".join(
        f"{words} {fig(f'{folder} {recipe} speed-up')} ({fig(f'{folder} {recipe} step')})"
        for recipe, words in recipes.items()
    )
    return measured(f"a denoise step against BF16: {listed}", folder)


ONNX = "h100/engines-onnx"
TENSORRT = "h200/engines-tensorrt"


def _optimizations() -> list[Row]:
    return [
        row(
            "compile",
            cog=(f"{fig('h200/steps compile speed-up')}", [_gains("h200/steps", {
                "compile": "blocks", "compile-model": "the whole model"})]),
            zero=(f"{fig(f'{ZERO_STEPS} compile speed-up')}, its best plain gain", [
                _gains(ZERO_STEPS, {"compile": "blocks, norms and convolutions"})]),
            wan=(f"{fig(f'{WAN_STEPS} compile speed-up')}", [
                _gains(WAN_STEPS, {"compile": "blocks"})]),
        ),
        row(
            "FP8",
            believed="stable",
            cog=(f"{fig(f'{STEPS} fast speed-up')} with qbench's kernels, "
                 f"{fig('h200/steps fp8-dynamic speed-up')} with torchao's alone", [
                _gains(STEPS, {"fast": "`fast`"}),
                _gains("h200/steps", {
                    "fp8-dynamic": "torchao, a scale a row", "fp8-tensor": "a scale a tensor",
                    "attention-fp8": "attention alone", "fp8": "weights alone, eager"})]),
            zero=(f"{fig(f'{ZERO_STEPS} fast speed-up')} with qbench's kernels, "
                  f"{fig(f'{ZERO_STEPS} fp8-dynamic speed-up')} with torchao's alone, where "
                  f"compiling alone has {_compiled(ZERO)}", [
                _gains(ZERO_STEPS, {"fast": "`fast`", "fp8-dynamic": "torchao",
                                    "fp8": "weights alone, eager"})]),
            wan=(f"{fig(f'{WAN_FAST} fast speed-up')} with qbench's kernels, "
                 f"{fig(f'{WAN_STEPS} fp8-dynamic speed-up')} with torchao's alone",
                 [_gains(WAN_FAST, {"fast": "`fast`"}), _gains(WAN_STEPS, {
                     "attention/fast-flash-3": "qbench's linears and FlashAttention 3",
                     "fp8-dynamic": "torchao"})]),
        ),
        row(
            "INT8",
            believed="unstable",
            cog=(f"{fig('h200/steps int8-dynamic speed-up')} compiled, where compiling alone has "
                 f"{_compiled(COG)}: memory, and no speed", [
                _gains("h200/steps", {
                    "int8-dynamic": "weights and activations", "int8": "weights alone, eager",
                    "int8-quanto": "weights alone, optimum-quanto"})]),
            zero=(f"{fig(f'{ZERO_STEPS} int8-dynamic speed-up')} compiled, where compiling alone "
                  f"has {_compiled(ZERO)}", [
                _gains(ZERO_STEPS, {"int8-dynamic": "weights and activations",
                                    "int8": "weights alone, eager"})]),
            wan=("not measured", [unmeasured("INT8", _run(WAN, "int8-dynamic int8"))]),
        ),
        row(
            "xFormers",
            cog=(f"{fig('h200/kernels xformers speed-up')}, by the FlashAttention 3 that it "
                 "brings", [
                _gains("h200/kernels", {"xformers": "xFormers",
                                        "flash-3": "FlashAttention 3 by itself"}),
                _gains("h200/steps", {"attention-fp8": "qbench's FP8 attention"})]),
            zero=("not measured", [unmeasured("xFormers", _run(ZERO, "attention/xformers"))]),
            wan=("not measured by itself; FlashAttention 3 "
                 f"{fig(f'{WAN_STEPS} attention/flash-3-compile speed-up')}, compiled", [
                _gains(WAN_STEPS, {"attention/flash-3-compile": "FlashAttention 3, compiled"}),
                unmeasured("xFormers", _run(WAN, "attention/xformers"))]),
        ),
        row(
            "ONNX",
            cog=(f"close and slow: {fig(f'{ONNX} exported/engine/onnx-bf16 step')} a step "
                 f"where BF16 takes {fig(f'{ONNX} bf16 step')}", [
                _gains(ONNX, {"exported/engine/onnx-bf16": "ONNX Runtime, BF16"}),
                measured("the whole denoiser, one node an attention, relative error "
                         f"{fig('h100/engines/exports.json onnx-bf16.relative_l2_to_variant %')}",
                         "h100/engines/exports.json"),
                measured("on two CPU cores the bundled model: "
                         f"{fig('xeon-2t-demo onnx-int8 speed-up')} in INT8, "
                         f"{fig('xeon-2t-demo onnx speed-up')} in FP32",
                         "xeon-2t-demo")]),
            zero=("a small one of its kind exports; at full size not measured", [
                unmeasured("ONNX Runtime at full size", _run(ZERO, "engine/onnx-bf16"))]),
            wan=("not measured", [
                unmeasured("ONNX Runtime", _run(WAN, "engine/onnx-bf16"))]),
        ),
        row(
            "TensorRT",
            cog=(f"close and slow: {fig(f'{TENSORRT} exported/engine/tensorrt-bf16 step')} a "
                 f"step where BF16 takes {fig(f'{TENSORRT} bf16 step')}", [
                _gains(TENSORRT, {"exported/engine/tensorrt-bf16": "TensorRT for RTX 1.4, BF16"}),
                measured("the whole denoiser, relative error " + fig(
                    f"{TENSORRT}/exports.json tensorrt-bf16.relative_l2_to_variant %"),
                         f"{TENSORRT}/exports.json"),
                unmeasured("TensorRT itself, and INT8 and FP8",
                           _run(COG, "engine/tensorrt-int8 engine/tensorrt-fp8"))]),
            zero=("not measured", [unmeasured("TensorRT", _run(ZERO, "engine/tensorrt-bf16"))]),
            wan=("not measured", [unmeasured("TensorRT", _run(WAN, "engine/tensorrt-bf16"))]),
        ),
        *_calibrated(),
    ]  # fmt: skip


def _compiled(model: str) -> str:
    """What compiling alone gains, which is in the speed-ups of INT8, FP8 and calibrated weights."""
    return fig({COG: "h200/steps", ZERO: ZERO_STEPS}[model] + " compile speed-up")


def _run(model: str, recipes: str) -> str:
    return f"qbench run bf16 {recipes} --set model={model} {RANDOM} --set measure.unit=step"


CALIBRATED_STEPS = ("h100/calibrated-steps", "h200/calibrated-steps")


def _calibrated() -> list[Row]:
    methods = {
        "AWQ": ("possible", ("calibrated/awq-int4", "calibrated/awq-int8")),
        "GPTQ": ("possible", ("calibrated/fast-gptq", "calibrated/gptq-fp8",
                              "calibrated/gptq-int4", "calibrated/awq-gptq-int4")),
        "SmoothQuant": ("", ("calibrated/smoothquant-int8", "calibrated/smoothquant-int8-static",
                             "calibrated/smoothquant-fp8")),
        "SVDQuant": ("", ("calibrated/svdquant-int4", "calibrated/svdquant-int4-rank-8")),
    }  # fmt: skip
    found = []
    for method, (believed, recipes) in methods.items():
        first, folder = next(
            (name, folder) for name in recipes for folder in CALIBRATED_STEPS if _has(folder, name)
        )
        plain = (
            f"`fast` has {fig('h200/steps fast speed-up')}"
            if first == "calibrated/fast-gptq"
            else f"compiling alone has {_compiled(COG)}"
        )
        faster = f"{fig(f'{folder} {first} speed-up')} the speed of BF16, where {plain}"
        cog = [*_steps_of(CALIBRATED_STEPS, recipes), *_quality_of(recipes)]
        found.append(
            row(
                method,
                believed=believed,
                cog=(f"runs: `{first}` at {faster}", cog),
                zero=(
                    f"runs on a small UNet of its kind{ON_UNET[method]}; at full size not measured",
                    [
                        *_verdicts(UNET, recipes, "tiny-zeroscope"),
                        unmeasured(f"{method} at full size", _run(ZERO, recipes[0])),
                    ],
                ),
                wan=("not measured", [unmeasured(method, _run(WAN, recipes[0]))]),
            )
        )
    return found


def _has(folder: str, recipe: str) -> bool:
    return published(folder) and any(
        r.recipe.name == recipe and r.status == "ok" for r in records(folder)
    )


def _steps_of(folders: Iterable[str], recipes: Iterable[str]) -> list[Found]:
    found = []
    for folder in folders:
        if names := {name: name for name in recipes if _has(folder, name)}:
            found.append(_gains(folder, names))
    return found


QUALITY = ("h200/calibrated",)
OUTLIERS = ("h200/calibrated-outliers",)
ON_UNET = {
    "AWQ": ", further from the reference than plain INT4",
    "GPTQ": "",
    "SmoothQuant": ", which has no outliers to smooth (and nothing that takes a scale, in FP8)",
    "SVDQuant": ", close but no smaller than INT8",
}
UNET = ("h200/zeroscope-quality",)


def _quality_of(recipes: Iterable[str]) -> list[Found]:
    found = []
    for folders, where in ((QUALITY, "the bundled model"), (OUTLIERS, "its outlier form")):
        found += _verdicts(folders, recipes, where)
    return found


def _verdicts(folders: Iterable[str], recipes: Iterable[str], where: str) -> list[Found]:
    """PSNR and verdict of each recipe, from the first of the folders that has it."""
    found, left = [], list(recipes)
    for folder in folders:
        names = [name for name in left if _has(folder, name)]
        left = [name for name in left if name not in names]
        if names:
            listed = ", ".join(
                f"{name} {fig(f'{folder} {name} psnr')} (*{fig(f'{folder} {name} verdict')}*)"
                for name in names
            )
            videos = fig(f"{folder} {names[0]} videos")
            found.append(measured(f"quality on {where}, {videos} videos: {listed}", folder))
    return found


def _stability() -> Row:
    plain = (
        "fp16", "bf16", "int8", "int8-dynamic", "fp8", "fp8-dynamic", "fp8-tensor", "fast",
        "ladder/int4", "ladder/int2",
    )  # fmt: skip
    outliers = _quality_of(
        ("calibrated/plain-int8-dynamic", "calibrated/smoothquant-int8", "calibrated/plain-int4",
         "calibrated/awq-int4", "calibrated/svdquant-int4", "fp8-dynamic")
    )  # fmt: skip
    own = "qbench run int8 int8-dynamic fp8-dynamic fast --model {} --set reference=bf16"
    return row(
        "stability under quantization",
        believed="INT8 unstable, FP8 stable",
        note="As long as no channel sticks out it is the other way round: INT8 keeps seven bits "
        "of a row's largest value, FP8 three of every value, and INT8 loses less. Where a few "
        "channels are a hundred times the others, plain INT8 of weights and activations breaks, "
        "FP8 hardly notices, and SmoothQuant wins all of it back for INT8. So the log was right "
        "about what outliers do, and which of the two a checkpoint is has to be measured on it.",
        cog=(
            "INT8 loses less than FP8 where no channel sticks out; with outliers INT8 breaks "
            "unless it is smoothed",
            [
                *_verdicts(("h200/quality",), plain, "the bundled model"),
                *outliers,
                unmeasured("its own weights", own.format("zai-org/CogVideoX-2b")),
            ],
        ),
        zero=(
            "not measured on its own weights; a small UNet of its kind keeps INT8 "
            "indistinguishable, FP8 and INT4 at drift",
            [
                *_verdicts(
                    UNET,
                    (*plain, "ladder/int8-quanto-conv", "ladder/int4-quanto-conv"),
                    "tiny-zeroscope",
                ),
                unmeasured("its own weights", own.format("cerspense/zeroscope_v2_XL")),
            ],
        ),
        wan=(
            "not measured on its own weights",
            [unmeasured("its own weights", own.format("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"))],
        ),
    )
