"""Commands outside the checkout, and a page's commands in a shell."""

import os
import subprocess
import sys
from pathlib import Path


def printed_by(command, environment, cwd, timeout=None):
    """Runs a command that must succeed; returns what it prints."""
    done = subprocess.run(
        command,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def bash(script, environment, cwd, executable=sys.executable):
    """Runs lines, up to the first that fails, with the console commands beside a Python; returns what they print."""
    path = f"{Path(executable).parent}{os.pathsep}{environment['PATH']}"
    return printed_by(["bash", "-euxo", "pipefail", "-c", script], environment | {"PATH": path}, cwd)
