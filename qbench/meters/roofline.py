"""The roofline of this machine: peak rates of GEMM and of copies, measured once and kept."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from qbench import subprocesses, textfile
from qbench.fields import Positive, Word

FILE = "ceilings.json"
SLOW_S = 0.05  # a GEMM that takes longer is not tried at the next size


class Ceilings(BaseModel):
    """Peak rates of a few seconds' calibration; dtypes without a GEMM here are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    device_name: Word
    torch: Word
    # By dtype: fp32, bf16, fp16, fp8, int8.
    product_flop_per_s: Annotated[dict[Word, Positive], Field(max_length=20)]
    copy_bytes_per_s: Positive  # read plus written


def measure(device: str) -> Ceilings:
    """Square GEMM of random values in every dtype, and a copy larger than any cache."""
    import torch

    cuda = device == "cuda"
    rates: dict[str, float] = {}
    for name in ("fp32", "bf16", "fp16", "int8", "fp8"):
        # From small to large: some CPUs take minutes for a large GEMM in FP16.
        for size in (1024, 8192) if cuda else (512, 2048):
            gemm = _gemm(name, size, device)
            seconds = _best(gemm, cuda) if gemm else None
            if seconds:
                rates[name] = max(rates.get(name, 0.0), 2 * size**3 / seconds)
            if not seconds or seconds > SLOW_S:
                break
    source = torch.empty(2**30 if cuda else 2**26, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), cuda)
    assert seconds is not None
    properties = torch.cuda.get_device_name() if cuda else "cpu"
    return Ceilings(
        device_name=properties,
        torch=torch.__version__,
        product_flop_per_s=rates,
        copy_bytes_per_s=2 * source.numel() / seconds,
    )


def _gemm(name: str, size: int, device: str) -> Callable[[], object] | None:
    """A square GEMM of random values; None where the machine has none in this dtype."""
    import torch

    if name == "int8":
        x, y = (torch.randint(-127, 128, (size, size), device=device) for _ in range(2))
        x, y = x.to(torch.int8), y.to(torch.int8)
        return lambda: torch._int_mm(x, y.t())  # the layout that the GPU is fast in
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    if name == "fp8":
        if device != "cuda" or torch.cuda.get_device_capability() < (8, 9):
            return None
        a, b = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(
            a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    a, b = a.to(dtype), b.to(dtype)
    return lambda: a @ b


def _best(call: Callable[[], object], cuda: bool) -> float | None:
    """The fastest of several calls; None where the machine refuses."""
    import torch

    try:
        call()
        found: list[float] = []
        until = time.perf_counter() + 0.15
        while time.perf_counter() < until or len(found) < 3:
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if cuda:
                torch.cuda.synchronize()
            found.append(time.perf_counter() - start)
        return min(found)
    except (RuntimeError, NotImplementedError):
        return None


def kept(folder: Path, device: str, again: bool = False) -> Ceilings | None:
    """The peak rates on file in `folder`, else measured now in a process of its own.

    `again` measures anew and keeps the best of both. A file that is damaged is measured anew. A
    machine that cannot be measured is not an error: figures then stand without MFU.
    """
    path = folder / FILE
    known = None
    with contextlib.suppress(OSError, ValueError):  # none yet, or none that can be read
        known = Ceilings.model_validate_json(path.read_text())
    if known is not None and not again:
        return known
    done = subprocesses.run("qbench.meters.roofline", device)
    if done.returncode:
        return known
    found = Ceilings.model_validate_json(done.stdout.strip().splitlines()[-1])
    best = _best_of(found, known) if known else found
    with contextlib.suppress(OSError):  # where it cannot be kept, it is measured again
        folder.mkdir(parents=True, exist_ok=True)
        textfile.replace(path, best.model_dump_json() + "\n")  # others read it meanwhile
    return best


def _best_of(a: Ceilings, b: Ceilings) -> Ceilings:
    names = sorted(a.product_flop_per_s.keys() | b.product_flop_per_s.keys())
    rates = {name: max(one.product_flop_per_s.get(name, 0.0) for one in (a, b)) for name in names}
    copy = max(a.copy_bytes_per_s, b.copy_bytes_per_s)
    return a.model_copy(update={"product_flop_per_s": rates, "copy_bytes_per_s": copy})


def main() -> None:
    """Print this machine's peak rates as JSON: `python -m qbench.meters.roofline cuda`."""
    print(json.dumps(measure(sys.argv[1]).model_dump()))


if __name__ == "__main__":
    main()
