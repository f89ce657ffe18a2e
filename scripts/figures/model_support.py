"""What is around each model: licence, paper, and what the installed diffusers can do with it."""

from __future__ import annotations

from qbench.models import Found, Row
from scripts.figures.model_rows import COG, WAN, WORDS, ZERO, known, row, row_of, unmeasured
from scripts.figures.values import Fault

PIPELINES = {COG: "CogVideoXPipeline", ZERO: "TextToVideoSDPipeline", WAN: "WanPipeline"}
DENOISERS = {
    COG: "CogVideoXTransformer3DModel",
    ZERO: "UNet3DConditionModel",
    WAN: "WanTransformer3DModel",
}
HUB = {
    COG: "zai-org/CogVideoX-2b",
    ZERO: "cerspense/zeroscope_v2_XL",
    WAN: "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
}
EXAMPLES = "https://github.com/huggingface/diffusers/tree/main/examples"


def rows() -> list[Row]:
    return [
        _licence(), _paper(), _controlnet(), _lora(), _fine_tuning(), _consistency(), _camera(),
    ]  # fmt: skip


def _sourced(text: str, address: str) -> Found:
    return known("sourced", text, address)


def _licence() -> Row:
    return row(
        "openness and licence",
        cog=("weights and code under Apache 2.0, commercial use included", [
            _sourced("Apache 2.0 for the 2B model; CogVideoX-5B has a licence of its own",
                     "https://github.com/zai-org/CogVideo#model-license"),
        ]),
        zero=("weights open, not for commercial use (CC BY-NC 4.0)", [
            _sourced("CC BY-NC 4.0", "https://huggingface.co/cerspense/zeroscope_v2_XL"),
            _sourced("ModelScope's, which it was trained from, have the same licence",
                     "https://huggingface.co/ali-vilab/text-to-video-ms-1.7b"),
        ]),
        wan=("weights and code under Apache 2.0, commercial use included", [
            _sourced("Apache 2.0", "https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B"),
        ]),
    )  # fmt: skip


def _paper() -> Row:
    return row(
        "paper",
        cog=("CogVideoX (Yang et al. 2024)", [
            _sourced("Text-to-Video Diffusion Models with An Expert Transformer",
                     "https://arxiv.org/abs/2408.06072"),
        ]),
        zero=("none of its own; ModelScope's (Wang et al. 2023)", [
            _sourced("ModelScope Text-to-Video Technical Report",
                     "https://arxiv.org/abs/2308.06571"),
        ]),
        wan=("Wan (Team Wan 2025)", [
            _sourced("Open and Advanced Large-Scale Video Generative Models",
                     "https://arxiv.org/abs/2503.20314"),
        ]),
    )  # fmt: skip


# What diffusers has -------------------------------------------------------------------------------


def _version() -> str:
    import diffusers

    return f"diffusers {diffusers.__version__}"


def _has(*names: str) -> str:
    """The names, each looked up in the installed diffusers. Raises Fault where one is gone."""
    import diffusers

    for name in names:
        if not hasattr(diffusers, name):
            raise Fault(f"{_version()} has no {name}")
    return " and ".join(f"`{name}`" for name in names)


def _lacks(word: str) -> None:
    """Nothing in diffusers with this in its name and ControlNet beside it. Raises Fault."""
    import diffusers

    there = [name for name in dir(diffusers) if word in name and "ControlNet" in name]
    if there:
        raise Fault(f"{_version()} has {', '.join(there)}")


def _bases(name: str) -> set[str]:
    import diffusers

    return {base.__name__ for base in getattr(diffusers, name).__mro__}


def _controlnet() -> Row:
    for word in ("CogVideoX", "TextToVideo", "UNet3D", "Wan"):
        _lacks(word)
    return row(
        "ControlNet",
        cog=("no ControlNet; control videos with the weights of CogVideoX-Fun", [
            known("checked", f"{_has('CogVideoXFunControlPipeline')}, no ControlNet class",
                  _version()),
        ]),
        zero=("none", [
            known("checked", "no ControlNet for UNet3DConditionModel; "
                  f"{_has('TextToVideoZeroPipeline')} takes one, but that is Stable Diffusion "
                  "frame by frame", _version()),
        ]),
        wan=("no ControlNet; control videos with the weights of VACE", [
            known("checked", f"{_has('WanVACEPipeline')}, no ControlNet class", _version()),
        ]),
    )  # fmt: skip


def _lora() -> Row:
    import diffusers

    loaders = {COG: "CogVideoXLoraLoaderMixin", ZERO: "StableDiffusionLoraLoaderMixin",
               WAN: "WanLoraLoaderMixin"}  # fmt: skip
    cells = {}
    for word, model in WORDS.items():
        if loaders[model] not in _bases(PIPELINES[model]):
            raise Fault(f"{PIPELINES[model]} of {_version()} has no {loaders[model]}")
        adapters = hasattr(getattr(diffusers, DENOISERS[model]), "load_lora_adapter")
        found = known(
            "checked",
            f"{PIPELINES[model]} has {loaders[model]}, {DENOISERS[model]} "
            + ("adapters of PEFT" if adapters else "no load_lora_adapter, which that one calls"),
            _version(),
        )
        short = "loads with `load_lora_weights`" if adapters else (
            "the pipeline has a loader, its UNet takes no adapters of PEFT"
        )  # fmt: skip
        cells[word] = (short, [found])
    return row_of("LoRA", cells)


def _fine_tuning() -> Row:
    import diffusers

    cells = {}
    scripts = {
        COG: ("a LoRA training script in diffusers' examples", f"{EXAMPLES}/cogvideo"),
        ZERO: ("trained by others' scripts for ModelScope's UNet",
               "https://github.com/ExponentialML/Text-To-Video-Finetuning"),
        WAN: ("trained by finetrainers, of diffusers' makers",
              "https://github.com/huggingface/finetrainers"),
    }  # fmt: skip
    for word, model in WORDS.items():
        kind = getattr(diffusers, DENOISERS[model])
        can = bool(kind._supports_gradient_checkpointing)
        text, address = scripts[model]
        checkpointing = f"gradient checkpointing: {'yes' if can else 'no'}"
        cells[word] = (
            f"{text}; {checkpointing}",
            [_sourced(text, address), known("checked", checkpointing, _version())],
        )
    return row_of("fine-tuning", cells)


# What needs real weights --------------------------------------------------------------------------


def _own(model: str, prompts: str) -> str:
    return (
        f"qbench run bf16 fast int8-dynamic --model {HUB[model]} --set reference=bf16 "
        f"--set prompts.set={prompts}"
    )


def _consistency() -> Row:
    text = (
        "how alike neighbouring frames are to CLIP (`clip_consistency`), flicker, rhythm and "
        "direction of motion, each beside the reference's"
    )
    return row_of(
        "consistency",
        note="Without real weights it cannot be told which of the models is steadier. What can be "
        "told is whether a variant is as steady as its reference: these figures are in every "
        "report of whole videos, and what the bundled model loses is in the results on quality.",
        cells={
            word: ("not measured between models", [unmeasured(text, _own(model, "scenes-v1"))])
            for word, model in WORDS.items()
        },
    )


def _camera() -> Row:
    text = (
        "amount, direction and rhythm of motion against the reference's "
        "(`motion_amount`, `motion_direction`, `motion_rhythm`)"
    )
    return row_of(
        "camera motion",
        note="No figure of qbench tells the camera's movement from that of things: it compares "
        "movement, region by region, with the reference's. The prompts of camera-v1 "
        "ask for pans, tilts, zooms and orbits, so that such a loss is seen where it would be.",
        cells={
            word: (
                "as prompted, by words alone; not measured",
                [unmeasured(text, _own(model, "camera-v1"))],
            )
            for word, model in WORDS.items()
        },
    )
