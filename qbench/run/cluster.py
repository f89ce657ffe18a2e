"""A Ray cluster as places for runs: its nodes, and seats on them. All of qbench's Ray is in here.

A seat is an actor in a placement group of its own, so its devices are reserved together on one
node. Whatever ends a seat's process, that of its run ends with it and its folder is removed (see
`processes`, `nodes`), so ending a seat is killing it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from qbench.errors import InputError, nearest, one_line
from qbench.meters.environment import Environment, variables
from qbench.quality.outputs import FOLDER as OUTPUTS
from qbench.results import store
from qbench.results.record import Record
from qbench.run import arrivals, processes, reachable
from qbench.run.execution import Stopped
from qbench.run.here import Listener, Task
from qbench.run.nodes import Chunk, Done, FilesAt, Heard, Message, Node, Noted, chunks, listed

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.util.placement_group import PlacementGroup

LOCAL = "local"
STORE_BYTES = 512 * 2**20  # of a local cluster's object store: files pass through it in chunks
AHEAD = 4  # messages that a run may be ahead of who reads them
READ = (store.FILE, "*.safetensors", f"{OUTPUTS}/**/*")  # of a reference's folder, by runs
_ORDINARY = ("CPU", "GPU", "memory", "object_store_memory")
THREADS = "OMP_NUM_THREADS"  # Ray sets it where the user has not
PRESTART = "RAY_prestart_worker_first_driver"  # a process a CPU, before anybody asks for one
MODE, TOKENS = "RAY_AUTH_MODE", ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
NO_TOKEN = (
    f"the cluster has another token, or this machine none: export {MODE}=token, and the "
    f"cluster's token as {TOKENS[0]} where no file has it"
)


class Lost(Exception):
    """A seat is gone, and why, in one line: not the doing of the run that it had."""


class NoSeat(Lost):
    """A node gives no seat, so nothing has begun there."""


@dataclass(frozen=True)
class Asked:
    """What the command line says about a cluster."""

    address: str  # local, auto, or host:port
    kinds: tuple[str, ...] = ()  # accelerator types or custom resources that nodes must have
    variables: Mapping[str, str] = field(default_factory=dict)  # for the runs' processes


@dataclass(frozen=True)
class Machine:
    """A node of the cluster, as Ray describes it."""

    id: str
    name: str  # for people
    gpus: int
    cpus: int
    kinds: tuple[str, ...]  # accelerator types and custom resources


class Cluster:
    """A connection to Ray, and the cluster itself where it is a local one."""

    def __init__(self, asked: Asked) -> None:
        """Raises InputError where there is no Ray, or no cluster at the address."""
        self._asked = asked
        self._folder: str | None = None
        self._seats: list[Seat] = []
        self._closing = False
        if asked.address == LOCAL:
            self._start()
        else:
            self._join()

    def _start(self) -> None:
        if not os.environ.keys() & {MODE, *TOKENS}:
            # Ray's own would be written to the user's home, and is read when Ray is imported.
            os.environ[MODE], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex()
        # No seat could take a process that was started ahead: each has variables of its own.
        os.environ.setdefault(PRESTART, "0")
        ray = _ray()
        self._folder = processes.own_folder()
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _temp_dir=self._folder,
                logging_level="ERROR",
                log_to_driver=False,
            )
        except BaseException as error:
            self.close()
            if isinstance(error, (RuntimeError, OSError, ValueError)):
                raise InputError(f"--ray local: Ray did not start: {_line(error)}") from None
            raise

    def _join(self) -> None:
        address = self._asked.address
        if "://" in address:
            raise InputError(
                f"--ray {address}: run qbench on a machine of the cluster and give host:port, or "
                "auto; Ray's client is not used"
            )
        if address != "auto":
            reachable.check(address)
        ray = _ray()
        with reachable.own_errors() as said:
            try:
                ray.init(address=address, logging_level="ERROR", log_to_driver=False)
            except Exception as error:  # of a dozen types, by what is wrong with the cluster
                said.seek(0)
                why = NO_TOKEN if b"InvalidAuthToken" in said.read() else _line(error)
                raise InputError(f"--ray {address}: {why}") from None

    # Nodes ----------------------------------------------------------------------------------------

    def machines(self) -> dict[str, Machine]:
        """The nodes that are alive and of a kind that was asked for, by their ids."""
        found = {}
        for node in _ray().nodes():
            if node["Alive"]:
                one = _machine(node)
                wanted = self._asked.kinds
                if not wanted or set(wanted) & set(one.kinds):
                    found[one.id] = one
        return found

    def check_kinds(self) -> None:
        """Raise InputError for a kind that no node has."""
        there = sorted(
            {kind for node in _ray().nodes() if node["Alive"] for kind in _machine(node).kinds}
        )
        for kind in self._asked.kinds:
            if kind not in there:
                have = f"; there is {', '.join(there)}" if there else ""
                raise InputError(f"--ray-kind {kind}: no node has it{nearest(kind, there)}{have}")

    # Seats ----------------------------------------------------------------------------------------

    def seat(
        self, machine: Machine, device: str, units: int, waiting: Callable[[str], None] | None
    ) -> Seat:
        """So many GPUs, or CPU threads, of this node. Raises NoSeat where it goes, or all ends.

        waiting: called once if others hold them. Without it NoSeat is raised then.
        """
        from ray.util.placement_group import placement_group

        bundle = {"GPU": float(units)} if device == "cuda" else {"CPU": float(units)}
        if device == "cuda" and machine.cpus >= machine.gpus:
            bundle["CPU"] = float(units)
        group = placement_group(
            [bundle], strategy="STRICT_PACK",
            bundle_label_selector=[{"ray.io/node-id": machine.id}],
        )  # fmt: skip
        seat = Seat(machine, units, group)
        self._seats = [one for one in self._seats if not one.closed] + [seat]
        began, told = time.monotonic(), False
        while not group.wait(timeout_seconds=1):
            if waiting is None or self._closing or machine.id not in self.machines():
                seat.close()
                raise NoSeat(f"{machine.name} is {'in use' if waiting is None else 'gone'}")
            if not told and time.monotonic() - began > 10:
                told = True
                waiting(machine.name)
        kept = variables(dict(os.environ)) | dict(self._asked.variables)
        unset = () if THREADS in kept else (THREADS,)
        seat.begin(bundle, kept, unset)
        return seat

    def closing(self) -> None:
        """End all seats now; who waits for one hears `Lost`."""
        self._closing = True
        for seat in self._seats:
            seat.close()

    def close(self) -> None:
        """End what was started, and the cluster where it is a local one."""
        ray = _ray()
        self.closing()
        with contextlib.suppress(Exception):  # whatever state the cluster is in
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class Seat:
    """Devices of a node, and the process there that runs on them."""

    def __init__(self, machine: Machine, units: int, group: PlacementGroup) -> None:
        self.machine, self.units = machine, units
        self.closed = False
        self._group = group
        self._actor: ActorHandle[Node] | None = None
        self._near: bool | None = None  # whether its files can be taken without Ray, once known

    def begin(
        self, bundle: Mapping[str, float], kept: Mapping[str, str], unset: tuple[str, ...]
    ) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where = PlacementGroupSchedulingStrategy(self._group, 0)
        self._actor = (
            _ray()
            .remote(Node)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=where,
                runtime_env={"env_vars": dict(kept)},
            )
            .remote(unset, Path.cwd())
        )

    def answers(self) -> bool:
        """Whether its process is alive."""
        try:
            return self._ask("answers") is True
        except Lost:
            return False

    def environment(self, device: str) -> Environment:
        """Of the runs that happen here. Raises Lost, InputError."""
        return cast(Environment, self._ask("environment", device))

    def peak(self, device: str) -> float:
        """What it can do at most beside others, in any unit. Raises Lost."""
        return cast(float, self._ask("peak", device))

    def run(self, task: Task, work: Path, listener: Listener, made: Path | None = None) -> Record:
        """Run, and leave all of it in `work`, its record last. Raises Lost, OSError.

        made: videos of it that were made in parts.
        """
        if task.reference:
            folder, record = task.reference[0].resolve(), task.reference[1]
            task = replace(task, reference=(folder, record))
            self._bring(record.run, folder, READ)
        key = ""
        if made is not None:
            key, task = uuid.uuid4().hex, replace(task, made=made)
            self._bring(key, made)
        messages = self._stream("run", task, key, self._is_near())
        done = self._receive(messages, work, task, listener)
        assert done.record is not None
        store.write(done.record, work)
        return done.record

    def part(self, task: Task, number: int, of: int, folder: Path, listener: Listener) -> str:
        """Make a part of the run's videos and leave them in `folder`; why not, if it failed."""
        messages = self._stream("part", task, number, of, self._is_near())
        return self._receive(messages, folder, task, listener).failed

    def close(self) -> None:
        """End the process, and give the devices back."""
        from ray.util.placement_group import remove_placement_group

        if self.closed:
            return
        self.closed = True
        ray = _ray()
        with contextlib.suppress(Exception):  # whatever is there to be ended is
            if self._actor is not None:
                ray.kill(self._actor)
            remove_placement_group(self._group)

    def _is_near(self) -> bool:
        """Whether this process sees the node's files: on one machine, files need not travel."""
        if self._near is None:
            secret = uuid.uuid4().hex
            path = Path(cast(str, self._ask("mark", secret)))
            try:
                self._near = path.read_text() == secret and os.access(path.parent, os.W_OK)
            except (OSError, UnicodeDecodeError):
                self._near = False
        return self._near

    # What travels ---------------------------------------------------------------------------------

    def _bring(self, key: str, folder: Path, patterns: tuple[str, ...] = ("**/*",)) -> None:
        """Have these files on the node, under this key if they are not in place there."""
        folder = folder.resolve()
        files = listed(folder, patterns)
        if self._ask("reads", key, folder, files):
            return
        for chunk in chunks(folder, iter(files)):
            self._ask("receive", key, chunk.name, chunk.data)
        self._ask("receive", key, "", b"")

    def _receive(
        self, messages: Iterator[Message], folder: Path, task: Task, listener: Listener
    ) -> Done:
        for message in messages:
            if isinstance(message, Heard):
                for event in message.events:
                    listener.event(task.draft.recipe, event)
            elif isinstance(message, Noted):
                listener.note(f"{message.text} ({self.machine.name})")
            elif isinstance(message, Chunk):
                arrivals.write(message, folder)
            elif isinstance(message, FilesAt):
                arrivals.take(Path(message.folder), folder)
            else:
                return message
        raise Lost(f"{self.machine.name}: the run ended without a word")

    def _ask(self, name: str, *arguments: object) -> object:
        ray = _ray()
        with self._understood():
            method = getattr(self._actor, name)
            return ray.get(method.remote(*arguments))

    def _stream(self, name: str, *arguments: object) -> Iterator[Message]:
        ray = _ray()
        with self._understood():
            method = getattr(self._actor, name).options(
                num_returns="streaming", _generator_backpressure_num_objects=AHEAD
            )
            for reference in method.remote(*arguments):
                yield ray.get(reference)

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Errors of Ray's become Lost; those of a run's own stay what they are."""
        from ray.exceptions import RayError, RayTaskError

        try:
            yield
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, InputError):
                raise cause from None
            if isinstance(cause, (OSError, Stopped)):  # the node's disk is full, or broken
                raise Lost(f"{self.machine.name}: {one_line(cause)}") from None
            raise
        except RayError as error:
            raise Lost(f"{self.machine.name}: {_line(error)}") from None


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise InputError("--ray: Ray is not installed: pip install 'qbench[ray]'") from None
    return ray


def _machine(node: Mapping[str, object]) -> Machine:
    resources = cast("Mapping[str, float]", node["Resources"])
    accelerators = [
        name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")
    ]
    own = [
        name
        for name in resources
        if ":" not in name and "_group_" not in name and name not in _ORDINARY
    ]
    id_, named = str(node["NodeID"]), str(node.get("NodeName") or "")
    if named in ("", node["NodeManagerAddress"]):  # as Ray names it where nobody has
        named = f"{node['NodeManagerHostname']}/{id_[:6]}"
    return Machine(
        id=id_,
        name=named,
        gpus=int(resources.get("GPU", 0)),
        cpus=int(resources.get("CPU", 0)),
        kinds=tuple(sorted(accelerators + own)),
    )


def _line(error: BaseException) -> str:
    """What Ray says, of its many lines the one that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = [line for line in lines if "because" in line or "out of memory" in line.lower()]
    return one_line((why or lines or [type(error).__name__])[0])[:400]
