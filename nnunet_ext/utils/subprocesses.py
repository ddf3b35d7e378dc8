"""Console commands as child processes: finds, starts and ends them with all that they started."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nnunet_ext.utils.signals import interruptible_children

RESUMABLE_EXIT = 75  # ended on request and can be resumed (EX_TEMPFAIL of sysexits.h)
TAIL_LINES = 15
STOP_SECONDS = 20


def console_script(name: str, search_path: str | None = None) -> str:
    """Path of a console script, in this Python's environment or else on PATH.

    Raises:
        FileNotFoundError: if there is none.
    """
    beside_python = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside_python or shutil.which(name, path=search_path)
    if found is None:
        raise FileNotFoundError(f"the command {name} is not installed; pip install nnunetv2")
    return found


def start_command(
    command: Sequence[str], environment: Mapping[str, str], output: IO[Any] | None, own_group: bool = False
) -> subprocess.Popen:
    """Starts a command, its output in a file (None: where this process writes).

    With `own_group`, a Ctrl-C at the terminal does not reach it, and `stop_command` ends all that it started.
    """
    new_group: dict[str, Any] = {}
    if own_group and os.name == "nt":
        new_group["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP  # type: ignore[attr-defined,unused-ignore]
    elif own_group:
        new_group["start_new_session"] = True
    with interruptible_children():  # `ask_to_stop` interrupts it
        return subprocess.Popen(
            command,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            **new_group,
        )


def ask_to_stop(process: subprocess.Popen) -> None:
    """Interrupts a command as Ctrl-C does, so that it ends its own workers; returns at once."""
    if process.poll() is None:
        if os.name == "nt":
            process.terminate()
        else:
            process.send_signal(signal.SIGINT)


def stop_command(process: subprocess.Popen, own_group: bool = False, seconds: float = STOP_SECONDS) -> None:
    """Interrupts a command; kills it if it does not react, and with `own_group` the rest of its group."""
    ask_to_stop(process)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if own_group:
        signal_group(process, getattr(signal, "SIGKILL", None))


def signal_group(process: subprocess.Popen, number: int | None) -> None:
    """Sends a signal to all processes of a command started with `own_group`; nothing on Windows."""
    if os.name == "nt" or number is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # no process is left; macOS raises these for zombies
        os.killpg(process.pid, number)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def is_running(pid: int) -> bool:
    """Whether a process with this number is running on this machine; on Windows always False."""
    if os.name == "nt" or pid <= 0:  # a signal of 0 would end a process on Windows
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:  # where the kernel tells: a zombie, which has ended but was not collected, does not count
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True
