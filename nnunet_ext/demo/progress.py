"""Runs one of nnU-Net's console commands with a progress bar."""

import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from nnunet_ext.utils.subprocesses import console_script, start_command, stop_command, tail

_POLL_SECONDS = 0.5


class CommandFailed(RuntimeError):
    """A console command failed; the message contains the end of its log."""


def run_command(
    title: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path,
    total: int,
    count_done: Callable[[], int],
    pid_file: Path | None = None,
) -> None:
    """Runs a command to completion, writes its output to `log` and shows `count_done()` of `total` in a progress bar.

    If this process is interrupted, so is the command; `pid_file` holds the command's process ID while it runs.

    Raises:
        CommandFailed: if the command ends with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as output,
        tqdm(total=total, desc=title, bar_format="{desc:<28}{percentage:3.0f}%|{bar}| {elapsed}") as bar,
    ):
        process = start_command([console_script(command[0]), *command[1:]], environment, output)
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
            stop_command(process)
            if pid_file is not None:
                pid_file.unlink(missing_ok=True)
        if code == 0:
            bar.n = total
            bar.refresh()
    if code != 0:
        raise CommandFailed(f"{shlex.join(command)} failed with exit code {code}; the end of {log}:\n{tail(log)}")


def count_lines(path: Path, *parts: str) -> int:
    """Number of log lines that have one of `parts` near their start, after a time; 0 if there is no file."""
    if not path.is_file():
        return 0
    with path.open(errors="replace") as lines:
        return sum(any(part in line[:60] for part in parts) for line in lines)
