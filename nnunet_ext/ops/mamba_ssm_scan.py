"""The selective scan by the CUDA kernels of the package mamba_ssm, where a user has installed it."""

from collections.abc import Sequence
from functools import cache
from importlib import util

from torch import Tensor


@cache
def why_unusable() -> str | None:
    """Reason why the kernels cannot be imported, or None (a recent mamba_ssm may come without them)."""
    if util.find_spec("mamba_ssm") is None:
        return "the package mamba_ssm is not installed"
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_cuda
    except (ImportError, OSError) as error:
        return f"mamba_ssm cannot be imported: {error}"
    return None if selective_scan_cuda is not None else "mamba_ssm was installed without its Mamba-1 CUDA kernel"


def scan(tensors: Sequence[Tensor | None], softplus: bool, reverse: bool) -> tuple[Tensor, Tensor]:
    """y, under the package's own autograd, and the last state, for which the kernels have no gradient.

    Args:
        tensors: u, delta, A, B, C, D, z and delta_bias.
        softplus: Whether softplus is applied to delta.
        reverse: Whether to scan from the last position; the kernels know one direction, so sequences are flipped.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    sequences = (0, 1, 3, 4, 6)
    given = [x.flip(-1) if reverse and x is not None and i in sequences else x for i, x in enumerate(tensors)]
    y, state = selective_scan_fn(*given, softplus, return_last_state=True)
    return (y.flip(-1) if reverse else y), state.detach()
