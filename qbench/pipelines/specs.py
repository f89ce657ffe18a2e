"""From a model's name to a live pipeline: bundled, hub id, or local folder in diffusers layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import textfile
from qbench.errors import InputError, LoadError, Unsupported, brief, nearest, one_line
from qbench.pipelines import families, folders
from qbench.pipelines.known import IDS, KNOWN, Model
from qbench.recipe.schema import Dtype, Generation, Outliers, Weights

if TYPE_CHECKING:
    import torch

    from qbench.pipelines.base import Configs, Module, Pipe, VideoPipeline

LOAD_S, SLOWEST = 300.0, 20e6  # a folder may take so many seconds, and one for so many bytes
HUB_LOAD_S = 6 * 3600.0  # a download too


def find(name: str) -> Model:
    """The model of a known name, a folder, or a hub id such as 'zai-org/CogVideoX-2b'.

    However a model is spelled, it is one: its hub id is its known name, a folder its whole path.
    Raises InputError.
    """
    if name in KNOWN:
        return KNOWN[name]
    folder = textfile.expanded(name)
    if textfile.is_closed(folder / folders.INDEX):  # whatever it is, no hub id takes its place
        raise InputError(f"model {textfile.closed(brief(name))}")
    if textfile.is_folder(folder):
        return _in_folder(name, folder.resolve())
    if name.lower() in IDS:
        return IDS[name.lower()]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Model(name=name.replace("/", "--"), source=name, about="from the hub")
    raise InputError(
        f"model {brief(name)}: neither a known model, a folder nor a hub id{nearest(name, KNOWN)}"
    )


def unlike(one: str, other: str) -> bool:
    """Whether one known model's denoiser is a transformer and the other's a UNet."""
    return len({KNOWN[name].denoiser for name in (one, other) if name in KNOWN}) > 1


def _in_folder(name: str, folder: Path) -> Model:
    for known in KNOWN.values():
        if known.local and Path(known.source).resolve() == folder:
            return known
    index = folders.index_of(name, folder)
    about = f"{brief(index.get('_class_name', 'pipeline'))} in a local folder"
    return Model(name=folder.name, source=str(folder), about=about)


def with_defaults(model: Model, family: type[VideoPipeline], configs: Configs) -> Model:
    """The model with the defaults of the known one that its configuration is, if it is one.

    Known models of one configuration (Zeroscope's two) share what they have in common.
    """
    if model.name in KNOWN:
        return model
    alike = [known for known in KNOWN.values() if family.is_known(known.name, configs)]
    if not alike:
        return model
    one = alike[0]
    return replace(
        model,
        steps=one.steps,
        guidance=one.guidance,
        size=one.size if all(other.size == one.size for other in alike) else None,
        surroundings=one.surroundings,
        vae_dtype=one.vae_dtype,
    )


def check(model: Model, wanted: Generation) -> None:
    """Refuse what this model cannot generate, where that is known before it is loaded.

    Raises InputError. A folder that cannot be loaded at all passes: its run fails, with a record.
    """
    if _is_sized(model):
        _resolved(model, wanted)


def video_shape(model: Model, wanted: Generation) -> tuple[int, int, int] | None:
    """Frames, height and width of a video, where they are known before the model is loaded."""
    try:
        return _resolved(model, wanted) if _is_sized(model) else None
    except InputError:
        return None  # `check` has more to say about it


def _is_sized(model: Model) -> bool:
    """Whether its configuration is here; that of an unknown model may be on the hub."""
    return model.local or model.name in KNOWN


def _resolved(model: Model, wanted: Generation) -> tuple[int, int, int] | None:
    try:
        family, configs = _sizes(model)
    except LoadError:
        return None  # loading will have more to say about it
    return family.grid(configs).resolve(wanted, with_defaults(model, family, configs).size)


def load(
    model: Model,
    dtype: Dtype,
    device: str,
    weights: Weights = "pretrained",
    offloaded: bool = False,
    variant: str | None = None,
    outliers: Outliers | None = None,
) -> VideoPipeline:
    """The pipeline on `device`: its denoiser in `dtype`, the rest in the model's own dtype.

    Where it will be `offloaded` only the denoiser goes there, to be quantized: the whole would not
    fit the card that it is offloaded for. Reads safetensors only and runs no code of the repository
    that it loads from. With `weights: random` nothing is downloaded and there is no text encoder.
    variant: of the weights' files, such as fp16.
    outliers: channels that the denoiser is given, in FP32 and before it is rounded to `dtype`.
    Raises InputError where no family drives the pipeline, LoadError where it cannot be loaded.
    """
    if weights == "random":
        from qbench.pipelines import random_weights

        family, configs = _sizes(model)
        dtypes = part_dtypes(with_defaults(model, family, configs), dtype, family.part, device)
        if outliers:
            dtypes[family.part] = _dtypes()["fp32"]
        pipe = random_weights.pipeline(family, configs, dtypes, device)
        return _placed(pipe, device, offloaded, dtype, outliers)
    limit = LOAD_S
    if model.local:
        found = folders.read(Path(model.source))
        folders.check(found, variant)
        family, configs = found.family, found.configs
        limit += sum(p.stat().st_size for p in found.path.rglob("*.safetensors")) / SLOWEST
    else:
        family, configs = _on_hub(model)
        limit = HUB_LOAD_S
    dtypes = part_dtypes(with_defaults(model, family, configs), dtype, family.part, device)
    if outliers:
        dtypes[family.part] = _dtypes()["fp32"]
    message = f"model {model.source}: not loaded after {limit:.0f} s"
    with _told(model), folders.time_limit(limit, message):
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(
            model.source,
            dtype=dtypes,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=model.local,
            variant=variant,
        )
    return _placed(pipe, device, offloaded, dtype, outliers)


def part_dtypes(model: Model, dtype: Dtype, part: str, device: str) -> dict[str, torch.dtype]:
    """The dtype of the denoiser, of the VAE, and of the rest ("default")."""
    kinds = _dtypes()
    rest = kinds[_surroundings(model, device)]
    vae = kinds[model.vae_dtype] if model.vae_dtype else rest
    return {"default": rest, "vae": vae, part: kinds[dtype]}


def _dtypes() -> dict[Dtype, torch.dtype]:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cast(module: Module, wanted: torch.dtype) -> None:
    """Cast in place as `from_pretrained` does: layers that must keep FP32 do."""
    import torch

    kept = list(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    of_diffusers = hasattr(module, "config_name")  # transformers' rule is for FP16 alone
    if of_diffusers or wanted == torch.float16:
        kept += getattr(module, "_keep_in_fp32_modules", None) or ()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        held = any(part in name.split(".") for part in kept)
        if value.is_floating_point() and not held:
            value.data = value.data.to(wanted)


@contextmanager
def _told(model: Model) -> Iterator[None]:
    """Whatever the libraries raise as they load becomes a LoadError of one line."""
    import torch

    try:
        yield
    except (LoadError, Unsupported, InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = one_line(error, 300)
        unknown = not model.local and model.name not in KNOWN
        taken = " (there is no such folder here, so it is taken for a hub id)" if unknown else ""
        raise LoadError(f"model {model.source}{taken} could not be loaded: {reason}") from error


def _on_hub(model: Model) -> tuple[type[VideoPipeline], Configs]:
    """The family and configurations of a model on the hub: a few small files are fetched."""
    with _told(model):
        import diffusers

        index = diffusers.DiffusionPipeline.load_config(model.source)
        family = families.of_class(str(index.get("_class_name")))
        return family, {
            part: getattr(diffusers, name).load_config(model.source, subfolder=part)
            for part, name in family.parts.items()
            if part != "scheduler"
        }


def _sizes(model: Model) -> tuple[type[VideoPipeline], Configs]:
    """The family and the configurations of a model's parts, of which no weights are read."""
    if model.local:
        found = folders.read(Path(model.source))
        return found.family, found.configs
    for name in families.known():
        family = families.of_class(name)
        configs = family.random_configs(model.name)
        if configs is not None:
            return family, configs
    raise InputError(
        f"weights: random: the size of {model.source} is not known without its folder"
        f"{nearest(model.name, KNOWN)}"
    )


def _placed(
    pipe: Pipe, device: str, offloaded: bool, dtype: Dtype, outliers: Outliers | None
) -> VideoPipeline:
    pipe.set_progress_bar_config(disable=True)
    video = families.wrap(pipe)
    if outliers:
        from qbench.pipelines import rescaling

        rescaling.add_outliers(video, outliers)
        cast(video.denoiser, _dtypes()[dtype])
    pipe.to("cpu" if offloaded else device)
    video.denoiser.to(device)
    return video


def _surroundings(model: Model, device: str) -> Dtype:
    import torch

    fast = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "fp32" if model.surroundings == "bf16" and not fast else model.surroundings
