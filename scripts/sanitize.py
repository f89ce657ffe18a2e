"""qbench's kernels under NVIDIA's compute-sanitizer: stray accesses, races, barriers.

    python -m scripts.sanitize [--tools memcheck racecheck] [--limit 280]
        [--out results/published/MACHINE/sanitizer.json]

Each tool runs the tests of the kernels that are small, with every tensor in an allocation of its
own, so that a byte past its end is past the end of the memory. A kernel that is wrong on purpose is
run before them: a tool that does not find it proves nothing of the others. Prints for each tool
how many errors it found; ends with code 1 where there are any. Needs a Hopper GPU and the CUDA
toolkit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts import bench

TOOL = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "synccheck")
HERE = "tests/optimizations"
SHOWN = 60  # lines of a program that is not clean
KINDS = 8  # of reports that are told apart
# Tests by their file, narrowed to shapes that a tool which watches every access gets through.
SMALL = {
    "test_kernels.py": "test_kernel_computes_what_its_model_says or views_as_they_lie "
    "or lets_through_what_is_not_finite or (test_rows_kernel and (-64 or -320 or -2056)) "
    "or test_convolutions_of_planes or test_norms_of_planes",
    "test_fp8_blocks.py": "test_norm_kernel and (48 or 1544)",
    "test_fp8_rotary.py": "test_rotary_norm_kernel or reads_views or not_finite",
    "test_sparse_attention.py": "test_kernel_computes_planted_blocks and 0.5 "
    "and (lengths2 or lengths3)",
}
# And narrower still for a tool that takes longer: each kernel once, on more than one tile or block.
FEWER = {
    "racecheck": {
        "test_kernels.py": "(dtype0 and test_kernel_computes_what_its_model_says "
        "and (300 or 1111)) or (test_rows_kernel and -320) "
        "or (dtype0 and test_convolutions_of_planes and (17 or 23)) "
        "or (test_norms_of_planes and 48-16-4-2)",
    },
}
PLANTED = """
extern "C" __global__ void planted(float* x, int n) {
    __shared__ float row[64];
    row[threadIdx.x] = x[threadIdx.x];
    x[n + threadIdx.x] = row[63 - threadIdx.x];
    if (threadIdx.x <= 16) {
        __syncwarp(0xffff);
        row[threadIdx.x] += 1;
    }
    if (threadIdx.x < 40) __syncthreads();
    x[threadIdx.x] = row[threadIdx.x];
}
"""
# In it memcheck has to find a store past the end, racecheck a read beside the store that it needs,
# and synccheck a lane at a barrier of its warp whose mask leaves it out, or a warp of which some
# lanes do not come to the block's.
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


def errors(output: str) -> int | None:
    """How many a tool's output tells of; None where it came to no end."""
    found = [int(one or other) for one, other in SUMMARY.findall(output)]
    return sum(found) if found else None


def kinds(output: str) -> dict[str, int]:
    """What a tool reports by the first line of each report, without addresses: how many of each."""
    firsts = re.findall(r"^\.*=========\s(?!COMPUTE-SANITIZER|\s)(.+)$", output, re.MULTILINE)
    told = [re.sub(r"\+0x[0-9a-f]+", "", line) for line in firsts if "SUMMARY" not in line]
    return dict(Counter(told).most_common(KINDS))


def chosen(tool: str) -> dict[str, str]:
    return SMALL | FEWER.get(tool, {})


def pytest_words(file: str, which: str, mark: str = "gpu") -> list[str]:
    """What Python runs tests by. A second -q, on top of the project's own, would count none."""
    return ["-m", "pytest", "-m", mark, file, "-k", which]


def counted(output: str, outcome: str) -> int:
    """How many tests passed, or failed, by pytest's last line."""
    lines = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", output, re.MULTILINE)
    found = re.search(rf"(\d+) {outcome}", lines[-1]) if lines else None
    return int(found[1]) if found else 0


def command(tool: str, *words: str) -> list[str]:
    return [TOOL, "--tool", tool, "--target-processes", "all", sys.executable, *words]


def run(tool: str, limit: float, *words: str) -> str | None:
    """What it says; None where it took too long, and all that it started is gone."""
    with subprocess.Popen(
        command(tool, *words),
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the tool's own end would leave the program that it watches
    ) as process:
        try:
            return process.communicate(timeout=limit)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None


def plant() -> None:
    """Run the kernel that is wrong on purpose."""
    import torch
    from torch.cuda._utils import _cuda_load_module, _nvrtc_compile

    binary, symbol = _nvrtc_compile(PLANTED, "planted", "90a")
    kernel: Any = _cuda_load_module(binary, [symbol])[symbol]  # type: ignore[index]
    kernel(grid=(1, 1, 1), block=(64, 1, 1), args=[torch.zeros(64, device="cuda"), 64])
    torch.cuda.synchronize()


def checked(tool: str, limit: float) -> Iterator[dict[str, Any]]:
    """What a tool finds in the planted kernel, and then in the tests of one file more each time."""
    said = run(tool, limit, "-c", "from scripts import sanitize; sanitize.plant()") or ""
    row: dict[str, Any] = {"tool": tool, "planted": errors(said), "tests": []}
    print(f"{tool}: planted {row['planted']}", flush=True)
    yield row
    for file, which in chosen(tool).items():
        said = run(tool, limit, *pytest_words(f"{HERE}/{file}", which)) or ""
        test = {
            "file": file,
            "passed": counted(said, "passed"),
            "failed": counted(said, "failed") + counted(said, "error"),
            "errors": errors(said),
            "kinds": kinds(said),
        }
        row["tests"].append(test)
        print(f"{tool}: {test}", flush=True)
        if not _clean(test):
            print(*(said or "too slow").splitlines()[-SHOWN:], sep="\n", flush=True)
        yield row


def _clean(test: dict[str, Any]) -> bool:
    return bool(test["errors"] == 0 and test["passed"] and not test["failed"])


def clean(row: dict[str, Any]) -> bool:
    """Whether the tool sees, and saw nothing, in tests that ran and passed."""
    tests = {test["file"]: _clean(test) for test in row["tests"]}
    return bool(row["planted"]) and tests.keys() == SMALL.keys() and all(tests.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS[:2]))
    parser.add_argument("--limit", type=float, default=280, help="seconds of each program")
    parser.add_argument("--out", type=Path, help="write what was found as JSON")
    args = parser.parse_args()
    if not shutil.which(TOOL):
        parser.error(f"{TOOL} is not installed: it comes with the CUDA toolkit")
    version = subprocess.run([TOOL, "--version"], capture_output=True, text=True).stdout
    told = version.strip().splitlines()[-1:]
    rows: dict[str, dict[str, Any]] = {}
    for tool in args.tools:
        for row in checked(tool, args.limit):
            rows[tool] = row
            if args.out:
                bench.write(args.out, "cuda", sanitizer=told, rows=list(rows.values()))
    if not all(map(clean, rows.values())):
        sys.exit(1)


if __name__ == "__main__":
    main()
