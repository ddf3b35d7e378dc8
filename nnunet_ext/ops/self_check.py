"""Kernels are compared with their reference at their first use in a process.

A compiler, driver or processor that this package was never tested with must not give silent wrong numbers: at its
first use every C and Triton kernel runs forward and backward on a tiny input, and where it fails or differs from plain
PyTorch, a warning says so once and plain PyTorch does the work.
"""

import threading
import warnings
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest difference from the reference, relative to its largest value, that single precision explains."""

Pairs = Iterable[tuple[Tensor, Tensor]]
"""What a kernel computed, and what the reference computed."""


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        error: Largest relative difference from the reference; None if the kernel could not run.
        reason: Why the kernel is not used; empty if it is.
    """

    error: float | None
    reason: str = ""


_verdicts: dict[Hashable, Verdict] = {}


def is_right(key: Hashable, kernel: str, compare: Callable[[], Pairs]) -> bool:
    """Whether a kernel agrees with its reference; found out once per process and `key`.

    Args:
        key: Identifies the kernel and what it was built for.
        kernel: Its name in the warning.
        compare: Runs the kernel and its reference.
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
    """Runs a comparison, whatever precision, mode, trace or operator is active around it."""
    verdicts: list[Verdict] = []
    # All of that belongs to a thread. Within an operator, references that use autograd would find none.
    thread = threading.Thread(target=lambda: verdicts.append(_check(compare)))
    thread.start()
    thread.join()
    return verdicts[0]


def _check(compare: Callable[[], Pairs]) -> Verdict:
    try:
        with torch.no_grad():
            error = max(relative_error(found, expected) for found, expected in compare())
    except Exception as failure:  # whatever it is: the work goes on without the kernel
        return Verdict(None, f"it failed with {type(failure).__name__}: {failure}")
    if not error <= TOLERANCE:  # NaN too
        return Verdict(error, f"it differs from the reference by {error:.1e} of the largest value")
    return Verdict(error)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value.

    Raises:
        ValueError: for results of another shape.
    """
    if found.shape != expected.shape:
        raise ValueError(f"the result has the shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def example(*shape: int, seed: int = 0, device: str | torch.device = "cpu") -> Tensor:
    """Values between -1 and 1 without a pattern, in single precision; leaves random generators alone."""
    number = torch.Size(shape).numel()
    phases = torch.arange(number, dtype=torch.float64) * 12.9898 + 78.233 * (seed + 1)
    return phases.sin().mul_(43758.5453).frac_().to(device, torch.float32).view(shape)
