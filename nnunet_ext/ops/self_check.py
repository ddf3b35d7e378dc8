"""Compares kernels with their reference at their first use in a process.

A compiler, driver or processor that this package was never tested with must not silently give wrong numbers. At its
first use, every C and Triton kernel therefore runs forward and backward on a tiny input. If it fails or differs from
plain PyTorch, a single warning says so, and plain PyTorch takes its place.
"""

import threading
import warnings
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest difference from the reference, relative to its largest value, that rounding to single precision explains."""

Pairs = Iterable[tuple[Tensor, Tensor]]
"""Pairs of a kernel's result and the reference's."""


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        error: Largest relative difference from the reference; None if the kernel could not run.
        reason: Reason why the kernel is not used; empty if it is used.
    """

    error: float | None
    reason: str = ""


_verdicts: dict[Hashable, Verdict] = {}


def is_right(key: Hashable, kernel: str, compare: Callable[[], Pairs]) -> bool:
    """Whether a kernel agrees with its reference; checked once per process and `key`.

    Args:
        key: Identifier of the kernel and of the device or processor that it was built for.
        kernel: Name of the kernel in the warning.
        compare: Function that runs the kernel and its reference.
    """
    if key not in _verdicts:
        _verdicts[key] = Verdict(0.0)  # the check itself runs the kernel
        _verdicts[key] = verdict = check(compare)
        if verdict.reason:
            warnings.warn(
                f"{kernel} is not used, plain PyTorch does its work, more slowly: {verdict.reason}. Run "
                "`nnunet_ext doctor --check` for details",
                stacklevel=2,
            )
    return not _verdicts[key].reason


def check(compare: Callable[[], Pairs]) -> Verdict:
    """Runs a comparison, independently of any precision, mode, trace or operator that is active around it."""
    verdicts: list[Verdict] = []
    # All of these are settings of a thread. Within an operator, references would have no autograd.
    thread = threading.Thread(target=lambda: verdicts.append(_check(compare)))
    thread.start()
    thread.join()
    return verdicts[0]


def _check(compare: Callable[[], Pairs]) -> Verdict:
    try:
        with torch.no_grad():
            error = max(relative_error(found, expected) for found, expected in compare())
    except Exception as failure:  # of any kind: plain PyTorch takes the kernel's place
        return Verdict(None, f"it failed with {type(failure).__name__}: {failure}")
    if not error <= TOLERANCE:  # NaN too
        return Verdict(error, f"it differs from the reference by {error:.1e} of the largest value")
    return Verdict(error)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value.

    Raises:
        ValueError: if the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"the result has the shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def example(*shape: int, seed: int = 0, device: str | torch.device = "cpu") -> Tensor:
    """Irregular values between -1 and 1 in single precision; random generators keep their states."""
    number = torch.Size(shape).numel()
    phases = torch.arange(number, dtype=torch.float64) * 12.9898 + 78.233 * (seed + 1)
    return phases.sin().mul_(43758.5453).frac_().to(device, torch.float32).view(shape)
