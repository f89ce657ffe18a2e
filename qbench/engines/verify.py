"""`qbench verify`: is this the engine that was exported, and does it compute the same here?

The order matters: what the manifest and the files' bytes can tell comes first, and nothing of the
folder is deserialized or executed before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from qbench import units
from qbench.engines import evidence, loading, manifest
from qbench.engines.manifest import Elsewhere, Manifest, Wrong

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.engines.formats import Run


class Check(BaseModel):
    """One line of the table."""

    model_config = ConfigDict(frozen=True)
    name: str
    result: Literal["good", "wrong", "cannot be checked here", "note"]
    said: str


class Verification(BaseModel):
    """What was found, in order; the first line that is not good is the last."""

    model_config = ConfigDict(frozen=True)
    folder: str
    checks: tuple[Check, ...]
    exit_code: Literal[0, 1, 2]


def verify(folder: Path, trust: bool = False, expect: str | None = None) -> Verification:
    """Check an exported folder on this machine, from its manifest to its predictions."""
    checks: list[Check] = []

    def good(name: str, said: str) -> None:
        checks.append(Check(name=name, result="good", said=said))

    try:
        written, digest = manifest.read(folder)
        good("manifest", f"schema version {written.schema_version}, SHA-256 {digest}")
        manifest.check_files(folder, written)
        good("files", f"{len(written.files)} files, {units.bytes_text(written.size_bytes)}")
        loading.check_machine(written)
        good("machine", f"{written.target.device}, {written.target.machine}")
        loading.check_trust(folder, written, digest, trust, expect)
        if written.format in manifest.CODE_FORMATS:
            said = f"{written.format} is machine code by nature: loading it runs it"
            checks.append(Check(name="trust", result="note", said=said))
        run = _opened(folder, written)
        good("load", f"{written.format}, {written.base_model.denoiser}")
        calls = evidence.load(folder, written.target.device)
        found = evidence.predictions(run, calls)
        good("parity", _parity(written, found, calls))
        samples = loading.timed(run, calls[0].inputs, written.target.device)
        said = f"{median(samples) * 1000:.3g} ms a call (n = {len(samples)})"
        if written.step_s is not None:
            said += f"; {written.step_s * 1000:.3g} ms at export"
        checks.append(Check(name="latency", result="note", said=said))
    except Wrong as error:
        checks.append(Check(name="wrong", result="wrong", said=str(error)))
        return Verification(folder=str(folder), checks=tuple(checks), exit_code=1)
    except Elsewhere as error:
        checks.append(Check(name="elsewhere", result="cannot be checked here", said=str(error)))
        return Verification(folder=str(folder), checks=tuple(checks), exit_code=2)
    return Verification(folder=str(folder), checks=tuple(checks), exit_code=0)


def _opened(folder: Path, written: Manifest) -> Run:
    try:
        return loading.opened(folder, written)
    except (Wrong, Elsewhere):
        raise
    except Exception as error:  # whatever a format's own loader raises
        said = " ".join(str(error).split())[:300]
        raise Wrong(f"{written.format} cannot be loaded: {type(error).__name__}: {said}") from error


def _parity(written: Manifest, found: Sequence[Tensor], calls: Sequence[evidence.Call]) -> str:
    """The error on the stored inputs, beside what it was at export. Raises Wrong past the limit."""
    error = evidence.against(written.against, found, calls).relative_l2
    before: manifest.Accuracy = getattr(written, written.against)
    named = evidence.NAMES[written.against]
    there = "at export" if written.proved_by == "engine" else "of its graph at export"
    said = (
        f"relative L2 {error:.3g} to {named} over {len(calls)} calls; {before.relative_l2:.3g} "
        f"{there}, allowed {written.parity_limit:g}"
    )
    if not error <= written.parity_limit:
        raise Wrong(f"it computes something else: {said}")
    return said
