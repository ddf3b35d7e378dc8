"""A page's commands in a shell."""

import os
import subprocess
import sys
from pathlib import Path


def bash(script, environment, cwd, executable=sys.executable):
    """Runs lines, up to the first that fails, with the console commands beside a Python; returns what they print."""
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        env=environment | {"PATH": f"{Path(executable).parent}{os.pathsep}{environment['PATH']}"},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout
