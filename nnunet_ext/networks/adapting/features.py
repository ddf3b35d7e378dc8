"""More or fewer inner features of a layer, with no change of its function, or little.

A feature that a row of one matrix writes and a column of another reads contributes the product of both. Where the new
layer has more features, the additional ones keep the initial values of the side that writes and have zeros on the side
that reads: they change nothing, and yet they are trained (with zeros on both sides neither would ever have a gradient).
Where it has fewer, those with the smallest contribution are dropped, added ones first, so that up and then down is the
identity.
"""

import torch
from torch import Tensor


def strongest(contribution: Tensor, number: int) -> Tensor:
    """Indices of the `number` features with the largest contribution (all, if there are fewer), in their order."""
    return contribution.topk(min(number, len(contribution))).indices.sort().values


def norms(weight: Tensor, axis: int) -> Tensor:
    """Root of the sum of squares for each index of an axis."""
    others = [a for a in range(weight.ndim) if a != axis % weight.ndim]
    return torch.linalg.vector_norm(weight.double(), dim=others)


def placed(old: Tensor, initial: Tensor, kept: Tensor, axis: int) -> Tensor:
    """`initial`, whose first indices along an axis are replaced by the kept ones of `old`."""
    result = initial.detach().clone().to(old.dtype)
    result.narrow(axis, 0, len(kept)).copy_(old.index_select(axis, kept))
    return result


def placed_on_zero(old: Tensor, number: int, kept: Tensor, axis: int) -> Tensor:
    """The kept indices of `old` along an axis, followed by zeros up to `number`."""
    shape = list(old.shape)
    shape[axis] = number
    return placed(old, old.new_zeros(shape), kept, axis)
