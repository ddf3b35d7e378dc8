"""A step's command as a running process."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.graph import Node
from nnunet_ext.utils.subprocesses import (
    STOP_SECONDS,
    ask_to_stop,
    console_script,
    signal_group,
    start_command,
    stop_command,
    tail,
)

CHECKPOINT_SIGNAL = getattr(signal, "SIGUSR1", None)  # Windows has none
_PLANNING = "nnUNetv2_plan_experiment"
_AUGMENTATION_PROCESSES = "nnUNet_n_proc_DA"


class Child:
    """Starts a step's command, in a group of processes of its own.

    Args:
        node: The step to run.
        environment: Environment of the command.
        log: File to which its output is appended; None: it goes where this process writes.
    """

    def __init__(self, node: Node, environment: Mapping[str, str], log: Path | None) -> None:
        self.node, self.log = node, log
        self.began = time.time()
        node.before()
        command = node.command()
        environment = _usable(command[0], environment)
        executable = command[0] if os.path.isabs(command[0]) else console_script(command[0])
        header = f"$ {shlex.join(command)}"
        if log is None:
            print(header, flush=True)
            self._process = _start([executable, *command[1:]], environment, None)
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as output:
                print(f"\n{header}", file=output, flush=True)
                self._process = _start([executable, *command[1:]], environment, output)

    @property
    def number(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def failure(self) -> str | None:
        """After the end: None if the step is finished, else the reason."""
        signal_group(self._process, getattr(signal, "SIGKILL", None))  # workers that it may have left
        code = self._process.returncode
        if code != 0:
            return f"{self.node.name} ended with exit code {code}"
        try:
            self.node.after()
        except OSError as error:
            return f"{self.node.name} ended, but {error}"
        if self.node.state() is State.FINISHED:
            return None
        return f"{self.node.name} ended without an error, but did not write its results"

    def last_lines(self) -> str:
        return tail(self.log) if self.log is not None else ""

    def request_checkpoint(self) -> None:
        """Asks one of our trainings to write a checkpoint after the current epoch and to end; others ignore it."""
        signal_group(self._process, CHECKPOINT_SIGNAL)

    def ask_to_stop(self) -> None:
        ask_to_stop(self._process)

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Interrupts the command and kills it, with all that it started, if it has not ended after some seconds."""
        stop_command(self._process, own_group=True, seconds=seconds)


def _usable(command: str, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, with at least one process for augmentation when nnU-Net plans.

    0, augmentation in the training's own process, is fine for trainings, but the planning uses it as torch's number of
    threads, which must be positive.
    """
    if command == _PLANNING and environment.get(_AUGMENTATION_PROCESSES, "").strip() == "0":
        return {**environment, _AUGMENTATION_PROCESSES: "1"}
    return environment


def _start(command: list[str], environment: Mapping[str, str], output) -> subprocess.Popen:
    """The command ignores the checkpoint signal unless it listens to it; the default is to die of it.

    A command inherits what its parent blocks, too: a training that ran in this process leaves the signal blocked, and
    a command started after it would never hear a request.
    """
    if CHECKPOINT_SIGNAL is None:
        return start_command(command, environment, output, own_group=True)
    previous = signal.signal(CHECKPOINT_SIGNAL, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {CHECKPOINT_SIGNAL})
    try:
        return start_command(command, environment, output, own_group=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(CHECKPOINT_SIGNAL, previous)
