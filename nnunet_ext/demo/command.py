"""Runs one of nnU-Net's console commands with a progress bar."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

_POLL_SECONDS = 0.5
_STOP_SECONDS = 20
_TAIL_LINES = 15


class CommandFailed(RuntimeError):
    """A console command ended with an error; the message has the end of its log."""


def console_script(name: str, search_path: str | None = None) -> str:
    """Path of a console script: of this Python's environment, else of PATH.

    Raises:
        FileNotFoundError: if there is none.
    """
    beside_python = shutil.which(name, path=str(Path(sys.executable).parent))
    found = beside_python or shutil.which(name, path=search_path)
    if found is None:
        raise FileNotFoundError(f"the command {name} is not installed; pip install nnunetv2")
    return found


def run_command(
    title: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    total: int,
    count_done: Callable[[], int],
    pid_file: Path | None = None,
) -> None:
    """Runs a command to its end, its output in `log`, while a bar shows `count_done()` of `total`.

    If this process is told to stop, so is the command; `pid_file` holds its process number meanwhile.

    Raises:
        CommandFailed: if it ends with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as output,
        tqdm(total=total, desc=title, bar_format="{desc:<28}{percentage:3.0f}%|{bar}| {elapsed}") as bar,
    ):
        process = subprocess.Popen(
            [console_script(command[0]), *command[1:]],
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        if pid_file is not None:
            pid_file.write_text(str(process.pid))
        try:
            while True:
                try:
                    code = process.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    bar.n = min(count_done(), total)
                    bar.refresh()
        finally:
            if process.poll() is None:
                _stop(process)
            if pid_file is not None:
                pid_file.unlink(missing_ok=True)
        if code == 0:
            bar.n = total
            bar.refresh()
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise CommandFailed(f"{' '.join(command)} failed with exit code {code}; the end of {log}:\n{tail}")


def _stop(process: subprocess.Popen) -> None:
    """Interrupts a command, so that it ends its own workers; kills it if it does not listen."""
    if os.name == "nt":
        process.terminate()
    else:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def count_lines(path: Path, *parts: str) -> int:
    """Number of lines of a log that have one of `parts` near their start, behind a time; 0 if there is no file."""
    if not path.is_file():
        return 0
    with path.open(errors="replace") as lines:
        return sum(any(part in line[:60] for part in parts) for line in lines)
