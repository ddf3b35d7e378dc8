"""Whether Triton's kernels can run here."""

import os
import warnings
from functools import cache
from importlib import metadata, util

import torch

_MIN_TRITON = (3, 3)
"""The first version whose kernels take tuples."""
_TRITONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")
"""Names of the distributions that contain the package."""


def _why_missing() -> str | None:
    if util.find_spec("triton") is None:
        return "the package triton is not installed"
    for name in _TRITONS:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if tuple(map(int, found.split(".")[:2])) < _MIN_TRITON:
            return f"{name} {found} is too old, {'.'.join(map(str, _MIN_TRITON))} is needed"
    return None


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton interprets its kernels in Python, on any tensors, for tests without a GPU."""
MISSING = _why_missing()
"""Reason why there is no Triton, or None; found once, as torch.compile must not trace the search."""


def why_unusable() -> str | None:
    """Reason why Triton's kernels cannot run on this machine's GPU, or None."""
    return MISSING or _why_it_fails()


@cache
def _why_it_fails() -> str | None:
    """Reason why Triton cannot start on this machine's GPU, or None; it is reported once, as a warning.

    At its first use Triton compiles a helper, which needs a C compiler and Python's headers.
    """
    if not torch.cuda.is_available():
        return None
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # of any kind: plain PyTorch does without Triton
        reason = f"Triton cannot start: {error}"
        warnings.warn(
            f"EM-Net and U-Mamba run in plain PyTorch, which is slow. {reason}. It needs a C compiler and Python's "
            "headers (gcc and python3-dev on Debian)",
            stacklevel=2,
        )
        return reason
    return None
