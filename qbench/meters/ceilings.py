"""What this machine can do at most: matrix products and copies, measured once and kept."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

FILE = "ceilings.json"


class Ceilings(BaseModel):
    """Best rates of a few seconds' calibration; null where the machine cannot."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    device_name: str
    torch: str
    product_flop_per_s: dict[str, float]  # by dtype: fp32, bf16, fp16, fp8, int8
    copy_bytes_per_s: float  # read plus written


def measure(device: str) -> Ceilings:
    """Square products of random values in every dtype, and a copy larger than any cache."""
    import torch

    cuda = device == "cuda"
    size = 8192 if cuda else 2048
    rates: dict[str, float] = {}
    for name, product in _products(size, device).items():
        seconds = _best(product, cuda)
        if seconds:
            rates[name] = 2 * size**3 / seconds
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


def _products(size: int, device: str) -> dict[str, Any]:
    import torch

    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    made: dict[str, Any] = {"fp32": lambda: a @ b}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        x, y = a.to(dtype), b.to(dtype)
        made[name] = lambda x=x, y=y: x @ y
    ints = [torch.randint(-127, 128, (size, size), device=device).to(torch.int8) for _ in range(2)]
    made["int8"] = lambda: torch._int_mm(ints[0], ints[1])
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        x8, y8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        one = torch.ones((), device=device)
        made["fp8"] = lambda: torch._scaled_mm(
            x8, y8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return made


def _best(call: Any, cuda: bool) -> float | None:
    """The fastest of several calls; None where the machine refuses."""
    import torch

    try:
        call()
        found: list[float] = []
        until = time.perf_counter() + (0.15 if cuda else 0.5)
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


def kept(folder: Path, device: str) -> Ceilings | None:
    """The ceilings on file in `folder`, measured now in a process of its own where there are none.

    A machine that cannot be measured is not an error: figures then stand without their share.
    """
    import subprocess

    path = folder / FILE
    if not path.is_file():
        done = subprocess.run(
            [sys.executable, "-m", "qbench.meters.ceilings", device], capture_output=True, text=True
        )
        if done.returncode:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(done.stdout.strip().splitlines()[-1] + "\n")
    try:
        return Ceilings.model_validate_json(path.read_text())
    except ValueError:
        return None


def main() -> None:
    """Print this machine's ceilings as JSON: `python -m qbench.meters.ceilings cuda`."""
    print(json.dumps(measure(sys.argv[1]).model_dump()))


if __name__ == "__main__":
    main()
