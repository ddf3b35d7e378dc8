"""Locks as files, for processes of one machine and of several that share a file system."""

import contextlib
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.utils.files import remove
from nnunet_ext.utils.subprocesses import is_running

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment,unused-ignore]

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""A holder on another machine counts as dead if its heartbeat is older."""


class LockHeld(ValueError):
    """Another process holds a lock; the message says which one and since when."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        what: Description of its work, for people.
        machine: Host name, and on Linux the boot and the process namespace to which its process numbers belong.
        processes: Numbers and start times of the process and of the command that it started.
        job: Number of its Slurm job, ARRAY_TASK for an array's task; None outside of a job.
        user: Name of the user.
        since: Local time at which the lock was taken.
        token: Unique name of this lock.
    """

    what: str
    machine: tuple[str, ...]
    processes: tuple[tuple[int, str], ...]
    job: str | None
    user: str
    since: str
    token: str

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.processes[-1][0]} on {self.machine[0]} ({self.user}{job}), since {self.since}"


def read_holder(path: Path) -> Holder | None:
    """The holder that a lock names; None if there is none, or while it is being written."""
    try:
        content = json.loads(path.read_text())
        processes = tuple((int(number), str(start)) for number, start in content.pop("processes"))
        return Holder(machine=tuple(content.pop("machine")), processes=processes, **content)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_held(path: Path) -> bool:
    """Whether a lock exists and its holder is alive.

    On the holder's machine this is decided by its processes, elsewhere by its heartbeat; a job that Slurm restarted
    knows that its own earlier start has ended.
    """
    try:
        beat = path.stat().st_mtime
    except FileNotFoundError:
        return False
    holder = read_holder(path)
    if holder is not None:
        if holder.machine == _machine():
            return any(_is_alive(number, start) for number, start in holder.processes)
        if holder.job is not None and holder.job == job_number():
            return False
    return _now(path.parent) - beat < STALE_SECONDS


class Lock:
    """A lock that this process holds, until `release` or the end of the process.

    Args:
        path: File of the lock, in a folder that all its users share. It is created exclusively.
        what: Description of what is locked, for people.

    Raises:
        LockHeld: if a live process holds it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self.lost = False
        self._holder = Holder(
            what,
            machine=_machine(),
            processes=(_this_process(),),
            job=job_number(),
            user=_user(),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            token=uuid.uuid4().hex,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._create() and not self._take_over():
            raise held(path, what)
        self._released = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._beat, daemon=True, name=f"heartbeat of {path.name}")
        self._thread.start()

    def add_process(self, number: int) -> None:
        """Adds a command that works under the lock: it may outlive this process if that is killed."""
        with self._writing:
            if self._is_ours():
                own = (_this_process(), (number, _start_time(number)))
                self._holder = Holder(**{**self._holder.__dict__, "processes": own})
                partial = self.path.with_name(f".{self.path.name}.{self._holder.token}.partial")
                partial.write_text(self._text())
                os.replace(partial, self.path)

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with self._writing:
            if self._is_ours():
                remove(self.path)

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(self._text())
        return True

    def _take_over(self) -> bool:
        """Replaces a dead holder; one process at a time checks, so that none removes the lock of a live one."""
        if is_held(self.path):  # perhaps another user's, in a folder where this one may not write
            return False
        with _guard(self.path):
            if is_held(self.path):
                return False
            remove(self.path)
            return self._create()

    def _text(self) -> str:
        return json.dumps(self._holder.__dict__)

    def _is_ours(self) -> bool:
        holder = read_holder(self.path)
        return holder is not None and holder.token == self._holder.token

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            with self._writing:
                if not self._is_ours():
                    self.lost = True
                    return
                with contextlib.suppress(OSError):
                    os.utime(self.path)


def held(path: Path, what: str) -> LockHeld:
    """The error for a lock that another process holds."""
    holder = read_holder(path)
    return LockHeld(f"{what} is taken by {holder or 'a process that has just begun'}")


def acquire(locks: Mapping[Path, str]) -> dict[Path, Lock]:
    """Acquires all of several locks, or none.

    Args:
        locks: Files, and a description of what each of them locks.

    Raises:
        LockHeld: for the first one that a live process holds.
    """
    taken: dict[Path, Lock] = {}
    try:
        for path in sorted(locks):  # all processes use the same order
            taken[path] = Lock(path, locks[path])
    except BaseException:
        release(taken.values())
        raise
    return taken


def release(locks: Iterable[Lock]) -> None:
    for lock in locks:
        lock.release()


def job_number(environment: Mapping[str, str] = os.environ) -> str | None:
    """Number of this process's job in Slurm; a task of an array has ARRAY_TASK."""
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID")


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Excludes other processes from the block, as far as the file system can; the kernel ends it with the process."""
    if fcntl is None:
        yield
        return
    with path.with_name(f".{path.name}.guard").open("a") as file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _machine() -> tuple[str, ...]:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return tuple(parts)


def _this_process() -> tuple[int, str]:
    return os.getpid(), _start_time(os.getpid())


def _is_alive(number: int, start: str) -> bool:
    return is_running(number) and start == _start_time(number)


def _start_time(number: int) -> str:
    """Start of a process, which tells it from a later one with the same number; empty where the kernel does not say."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _now(folder: Path) -> float:
    """The time by the clock of a folder's file system, by which heartbeats are dated."""
    probe = folder / f".{uuid.uuid4().hex}.partial"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        remove(probe)


def _user() -> Any:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in containers
        return str(os.getuid()) if hasattr(os, "getuid") else "?"
