"""A switch to operators that other runtimes know: real arithmetic in PyTorch's own functions, for export.

Kernels, custom operators and complex numbers are fast in PyTorch and unknown elsewhere. Inside `portable_operators`,
every operator of this package uses its plain form instead, and networks process a batch of any size in one piece: a
loop over samples or chunks would fix their number in an exported graph.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Loop = Literal["scan", "script"]
"""How a recurrence over time is recorded: as PyTorch's higher-order `scan`, which torch.export and ONNX know, or as a
loop of TorchScript's, which a trace takes over as it is."""

_loop: Loop | None = None


@contextmanager
def portable_operators(loop: Loop = "scan") -> Iterator[None]:
    """Context in which operators use portable forms; for export in one thread, without gradients."""
    global _loop
    before, _loop = _loop, loop
    try:
        yield
    finally:
        _loop = before


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Context without autocast.

    In portable forms, which run without autocast, it is empty: torch.export cannot save a loop inside such a context,
    and needs as long for the contexts as for the rest of EM-Net.
    """
    return nullcontext() if is_portable() else torch.autocast(device_type, enabled=False)


def is_portable() -> bool:
    """Whether operators must use their portable forms."""
    return _loop is not None


def recorded_loop() -> Loop | None:
    """How loops over time are recorded; None outside `portable_operators`."""
    return _loop
