"""Which lock a device has."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qbench.run import crew, locks

UUIDS = ["GPU-5d11a7c0-aaaa", "GPU-73bc0027-bbbb"]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML of a machine with two: there is none of its own here."""
    told = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: len(UUIDS),
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: UUIDS[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", told)


@pytest.mark.usefixtures("two_gpus")
def test_gpu_has_one_lock_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two timed sweeps measure on it at once, one by its number and one by its UUID."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second = locks.of_devices("cuda", 5)
    assert first != second
    assert locks.of_devices("cuda") == [first]
    for called, lock in (("0", first), ("1, 0", second), (UUIDS[1], second), ("GPU-73", second)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", called)
        assert locks.of_devices("cuda") == [lock]


@pytest.mark.usefixtures("two_gpus")
def test_locks_of_several_gpus_are_taken_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of two sweeps can hold what the other waits for."""
    found = []
    for called in ("0,1", "1,0", f"{UUIDS[1]},0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", called)
        found.append(locks.of_devices("cuda", 2))
        assert crew.devices(2, "cuda") == tuple(called.split(","))  # ranks keep theirs
    assert found[0] == found[1] == found[2]


def test_gpu_goes_by_its_name_where_nvml_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-7")
    one, other = locks.of_devices("cuda", 2)
    assert one != other
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert one in locks.of_devices("cuda", 2)
