"""Triton's interpreter, which must be on before a kernel is defined: a test file runs its checks as a script."""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import torch


def interpreted(file):
    """What `run_all` prints in a process of its own: the errors of every check, or its traceback, by name."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "error", file],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": root},
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,  # minutes, more on a busy machine
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def run_all(checks):
    """Every check's errors as JSON on standard output."""
    torch.set_num_threads(1)
    results = {}
    for name, check in checks.items():
        try:
            results[name] = check(torch.device("cpu"))
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))


def relative_errors(actual, expected):
    """Largest difference relative to the largest expected value, of everything expected."""
    errors = {}
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        errors[name] = ((actual[name] - value).abs().max() / value.abs().max().clamp_min(1e-12)).item()
    return errors


def assert_small(errors, tolerance):
    assert isinstance(errors, dict), errors
    assert errors
    for name, error in errors.items():
        assert error <= tolerance, f"{name}: {error:.1e}"  # false for NaN
