"""The machine that a sweep runs on: its environment, and what it can do at most."""

from __future__ import annotations

from pathlib import Path

from qbench import cache, subprocesses
from qbench.errors import InputError
from qbench.meters import roofline
from qbench.meters.environment import Environment
from qbench.meters.roofline import Ceilings
from qbench.recipe.schema import digest
from qbench.results.record import Record
from qbench.units import bytes_text


class Machines:
    """Read once a sweep, for each device that recipes ask for."""

    def __init__(self) -> None:
        self._environments: dict[str, Environment] = {}
        self._ceilings: dict[str, Ceilings | None] = {}

    def environment(self, device: str) -> Environment:
        if device not in self._environments:
            self._environments[device] = read_environment(device)
        return self._environments[device]

    def know(self, device: str, environment: Environment) -> None:
        """What another process of the sweep has read on this machine need not be read again."""
        self._environments.setdefault(device, environment)

    def ceilings(self, device: str) -> Ceilings | None:
        if device not in self._ceilings:
            self._ceilings[device] = roofline.kept(
                self._calibration(device), self.environment(device).device
            )
        return self._ceilings[device]

    def calibrate_again(self, device: str) -> None:
        self._ceilings[device] = roofline.kept(
            self._calibration(device), self.environment(device).device, again=True
        )

    def _calibration(self, device: str) -> Path:
        environment = self.environment(device)
        software = environment.software()
        software.pop("qbench", None)  # its own code changes nothing about what the machine can do
        machine = digest([environment.hardware(), software])
        return cache.folder() / f"{environment.machine()}-{machine}"


def read_environment(device: str) -> Environment:
    """Read in a process of its own, so that this one never holds a GPU's memory."""
    done = subprocesses.run("qbench.meters.environment", device)
    if done.returncode == 2:
        raise InputError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"the environment could not be read: {done.stderr.strip()[-500:]}")
    return Environment.model_validate_json(done.stdout.strip().splitlines()[-1])


def no_room_beside(reference: Record) -> str:
    """Why a second process like the reference's does not fit beside it; empty where it does.

    A variant is taken to need what the reference needs, since that is known before it has run.
    """
    peaks = [stage.peak for stage in reference.stages.values()]
    if reference.environment.device == "cpu":
        import psutil

        need = max((peak.resident_bytes or 0 for peak in peaks), default=0)
        room, where = psutil.virtual_memory().available, "memory that is free"
    else:
        from qbench.meters.memory import CONTEXT_BYTES

        need = max((peak.reserved_bytes or 0 for peak in peaks), default=0) + CONTEXT_BYTES
        room, where = reference.environment.device_memory_bytes, "the card"
    if 2 * need <= room:
        return ""
    return f"twice the reference's {bytes_text(need)} are more than {where} ({bytes_text(room)})"
