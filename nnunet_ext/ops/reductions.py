"""Sums over voxels."""

from torch import Tensor

_CHUNK_BYTES = 512 * 1024
"""Reductions run over chunks of this size, so that their products stay in the cache of one core."""


def sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """Sum over voxels of a * b without a temporary of full size: (B, voxels, C) twice -> (B, 1, C)."""
    step = max(1, _CHUNK_BYTES // (a.element_size() * max(1, a.shape[0]) * a.shape[2]))
    total = a.new_zeros(a.shape[0], 1, a.shape[2])
    for left, right in zip(a.split(step, 1), b.split(step, 1), strict=True):
        total += (left * right).sum(1, keepdim=True)
    return total
