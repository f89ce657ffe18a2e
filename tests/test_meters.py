from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import time

import pytest
import torch

from qbench import support
from qbench.meters import environment
from qbench.meters.clock import Clock, StepTimes, sample
from qbench.meters.memory import Peak, PeakMeter, stored_bytes


def test_clock_measures_a_known_wait_and_starts_over() -> None:
    clock = Clock("cpu")
    time.sleep(0.2)
    first, second = clock.lap(), clock.lap()
    assert first >= 0.2
    assert second < first


def test_step_times_are_one_a_step() -> None:
    steps = StepTimes("cpu")
    for wait in (0.05, 0.15, 0.05):
        time.sleep(wait)
        steps.mark()
    found = steps.seconds()
    assert len(found) == 3
    assert found[1] > found[0]
    assert found[1] >= 0.15


def test_peak_meter_sees_an_allocation_that_is_gone_and_forgets_it() -> None:
    meter = PeakMeter("cpu")
    base = meter.lap().resident_bytes or 0
    block = torch.ones(75_000_000)  # 300 MB
    del block
    high = meter.lap().resident_bytes or 0
    low = meter.lap().resident_bytes or 0
    assert high - base > 250e6
    if high == low:
        pytest.skip("this kernel refuses to reset the peak")
    assert high - low > 250e6


def test_larger_peak_is_field_by_field() -> None:
    a = Peak(allocated_bytes=1, resident_bytes=9)
    b = Peak(allocated_bytes=5, resident_bytes=2, driver_bytes=3)
    assert a.larger(b) == Peak(allocated_bytes=5, resident_bytes=9, driver_bytes=3)


def test_stored_bytes_counts_dtypes_and_buffers() -> None:
    module = torch.nn.Linear(10, 20, bias=False).half()
    module.register_buffer("scale", torch.zeros(5))
    assert stored_bytes(module) == 10 * 20 * 2 + 5 * 4


def test_environment_names_machine_and_versions() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench.meters.environment", "cpu"], capture_output=True, text=True
    )
    found = environment.Environment.model_validate(json.loads(done.stdout))
    assert found.device == "cpu"
    version = torch.__version__
    if torch.version.cuda:  # whose local part PyPI's builds leave out
        assert found.libraries["torch"] in (version, version.partition("+")[0])
    else:
        assert found.libraries["torch"] == version
    assert found.memory_bytes > 2**30
    assert found.machine().endswith(f"-{found.threads}t")
    other = found.model_copy(update={"threads": found.threads + 1})
    assert other.hardware() != found.hardware()
    assert other.software() == found.software()


def test_every_package_that_a_choice_computes_with_is_named_with_its_version() -> None:
    """What a recipe asks for, a record must be able to name: a peer's figure is of one version."""
    kept = {re.sub("[-_.]+", "-", name) for name in environment.LIBRARIES}
    told = {
        re.split(r"[\[=<>']", word.lstrip("'"))[0]
        for rule in support.RULES
        for command in re.findall(r"pip install ((?:[\w.\[\]='-]+ ?)+)", rule.reason)
        for word in command.split()
        if not word.startswith(("-", "nvidia-", "'qbench"))  # options, runtimes, our own extras
    }
    assert {"torchao", "xformers", "sageattention", "flash-attn-4", "cache-dit"} <= told
    assert told <= kept
    made = importlib.metadata.packages_distributions()
    here = {name for module in support.PACKAGES for name in made.get(module.partition(".")[0], ())}
    assert {re.sub("[-_.]+", "-", name.lower()) for name in here} <= kept


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench.meters.environment", "cuda"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("device: cuda was asked for")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_peak_counts_what_was_allocated() -> None:
    meter = PeakMeter("cuda")
    block = torch.ones(25_000_000, device="cuda")
    del block
    peak = meter.lap()
    assert (peak.allocated_bytes or 0) >= 100e6
    assert (meter.lap().allocated_bytes or 0) < 100e6


def test_samples_are_of_the_calls_after_the_warm_up() -> None:
    made: list[int] = []

    def call() -> None:
        made.append(len(made))
        time.sleep(0.05 if len(made) > 2 else 0)

    times = sample(call, "cpu", warmup=2, repeats=3)
    assert made == [0, 1, 2, 3, 4]
    assert len(times) == 3
    assert min(times) >= 0.05  # the quick ones are left out
