"""The networks that metrics are computed with: checked before a sweep, named in fingerprints.

Nothing here loads torch, for it is asked in the process that only plans.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qbench import cache, textfile
from qbench.errors import InputError, brief
from qbench.pipelines.known import BUNDLED, Model
from qbench.quality import weights
from qbench.quality.metrics import catalogue
from qbench.quality.metrics.base import Network
from qbench.quality.metrics.needs import I3D, PROBE, fvd_network
from qbench.recipe.schema import Fvd, Quality, digest

HUB_S = 5.0  # how long the hub is asked whether it has a model


def used(quality: Quality) -> set[Network]:
    """The networks of the metrics that a recipe asks for."""
    return {network for spec in catalogue.chosen(quality) for network in spec.networks}


def digests(quality: Quality, model: Model) -> dict[str, str]:
    """Network -> SHA-256 of its weights, of every network that the recipe's metrics use.

    A model of the hub is identified by its id. Fetched weights are identified by what they must
    be, for they are held against it on loading.
    """
    return dict(sorted(_digests(quality, model)))


def digest_of(quality: Quality, model: Model) -> str:
    """`digests` in twelve digits: runs that differ in it have figures of other networks."""
    return digest(digests(quality, model))


def _digests(quality: Quality, model: Model) -> Iterator[tuple[str, str]]:
    networks = used(quality)
    if "lpips" in networks:
        yield "lpips", weights.SOURCES[f"lpips-{quality.lpips}"].tensors
    if "clip" in networks:
        source = quality.clip or model.clip
        yield (
            "clip",
            cache.folder_digest(Path(source)) if textfile.is_folder(Path(source)) else source,
        )
    if "probe" in networks and model.world:
        yield "probe", cache.folder_digest(BUNDLED / "probe")
    if "fvd" in networks:
        name = fvd_network(quality.fvd, model)
        if name == PROBE:
            yield "fvd", cache.folder_digest(BUNDLED / "probe")
        elif name == I3D:
            yield "fvd", weights.SOURCES[I3D].tensors
        else:
            yield "fvd", cache.file_digest(textfile.expanded(name))


def check(quality: Quality, model: Model) -> None:
    """Whether what the recipe names can be used, as far as can be known before anything is loaded.

    Raises InputError, which begins with the field's name. What is merely not here, and was not
    asked for by name, is no error: its figures are left out with a note.
    """
    catalogue.check(quality)
    networks = used(quality)
    if "fvd" in networks:
        _check_fvd(quality.fvd, model)
    if "lpips" in networks:
        _check_weights("quality.lpips", f"lpips-{quality.lpips}")
    if "clip" in networks and quality.clip:
        _check_clip(quality.clip)


def _check_fvd(fvd: Fvd, model: Model) -> None:
    name = fvd_network(fvd, model)
    if name == I3D:
        _check_weights("quality.fvd.network", I3D, asked_for=fvd.network == I3D)
    elif name == PROBE:
        if not model.world:
            raise InputError(
                "quality.fvd.network: the probe knows the bundled model's world alone; name i3d"
            )
    else:
        check_trust(fvd)


def check_trust(fvd: Fvd) -> None:
    """A TorchScript file runs code of its own as it is loaded: only one that the recipe names.

    Raises InputError, which begins with the field, where its SHA-256 is not the recipe's.
    """
    path = textfile.expanded(fvd.network)
    actual = cache.file_digest(path)
    if fvd.sha256 is None:
        raise InputError(
            f"quality.fvd.network: {path} is a program, which runs as it is loaded; where you "
            f"trust it, give --trust-torchscript, or write sha256: {actual} below quality.fvd"
        )
    if fvd.sha256.lower() != actual:
        raise InputError(f"quality.fvd.sha256: {path} has {actual}, so it is another file")


def trusted(quality: Quality) -> Quality:
    """The same with the SHA-256 of the TorchScript file as it is now: --trust-torchscript."""
    path = textfile.expanded(quality.fvd.network)
    if quality.fvd.sha256 is not None or not textfile.is_file(path):
        return quality
    fvd = quality.fvd.model_copy(update={"sha256": cache.file_digest(path)})
    return quality.model_copy(update={"fvd": fvd})


def _check_weights(field: str, name: str, asked_for: bool = False) -> None:
    """That fetched weights are whole, and here where they were asked for by name."""
    if asked_for or not weights.missing(name):
        try:
            weights.check(name)
        except InputError as error:
            raise InputError(f"{field}: {error}") from None


def _check_clip(source: str) -> None:
    """A folder with a model, a tokenizer and a preprocessor in it; or an id that the hub has."""
    folder = Path(source)
    if textfile.is_closed(folder / "config.json"):
        raise InputError(f"quality.clip: {textfile.closed(brief(source))}")
    if textfile.is_folder(folder):
        needed = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
        lacking = [name for name in needed if not (folder / name).is_file()]
        if not list(folder.glob("*.safetensors")):
            lacking.append("*.safetensors")
        if lacking:
            raise InputError(f"quality.clip: {brief(source)} has no {', '.join(lacking)}")
        return
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        raise InputError(
            f"quality.clip: {brief(source)} is neither a folder nor an id of the hub"
        ) from None
    if reason := _not_on_the_hub(source):
        raise InputError(f"quality.clip: {brief(source)} is no folder here, and {reason}")


def _not_on_the_hub(source: str) -> str:
    """Why a model cannot be had from the hub, empty where it can."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(source, "config.json"), str):
        return ""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "the hub is not asked (HF_HUB_OFFLINE)"
    try:
        HfApi().model_info(source, timeout=HUB_S)
    except RepositoryNotFoundError:
        return "the hub has none of that name, or not for you"
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        return f"the hub cannot be asked ({type(error).__name__})"
    except Exception as error:  # the HTTP library under it has errors of its own
        if type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests"):
            return f"the hub cannot be asked ({type(error).__name__})"
        raise
    return ""
