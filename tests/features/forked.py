"""nnU-Net's commands as forks of a process that has already imported everything.

Of the time of a command on tiny networks nine tenths go into imports: of its own, and of its workers, which nnU-Net
spawns. Here both are forked; entry point, arguments, environment and exit code are those of the command.
"""

import importlib.metadata
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

_COMMANDS = {entry.name: entry for entry in importlib.metadata.entry_points(group="console_scripts")}
_IMPORTED = ("nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_plan_and_preprocess", "nnUNetv2_find_best_configuration")
_SECONDS = 900


class Forks:
    """Starts the process with the environment that its imports see, and runs commands in forks of it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            env={**environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess:
        """Runs a console command, or ``python FILE ...`` or ``python -m MODULE ...``."""
        log = folder / "forked.log"
        request = {"command": list(command), "environment": {**environment}, "folder": str(folder), "log": str(log)}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return subprocess.CompletedProcess(list(command), code, log.read_text(errors="replace"))

    def close(self) -> None:
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.communicate()


def _serve() -> None:
    for name in _IMPORTED:
        _COMMANDS[name].load()
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    recursive_find_trainer_class_by_name("StockTrainer")  # imports everything
    forked = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forked
    multiprocessing.cpu_count = lambda: 1  # nnU-Net uses one thread for each
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_run(**json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _run(command: list[str], environment: dict[str, str], folder: str, log: str) -> int:
    output = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream, target in ((output, 1), (output, 2), (os.open(os.devnull, os.O_RDONLY), 0)):
        os.dup2(stream, target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.alarm(_SECONDS)
    torch.seed()  # so that they do not share random numbers
    np.random.seed()  # noqa: NPY002
    code = 1
    try:
        _call(*command)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for child in multiprocessing.active_children():
        child.terminate()
    return code


def _call(name: str, *arguments: str) -> None:
    if name != "python":
        sys.argv = [name, *arguments]
        _COMMANDS[name].load()()
    elif arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
