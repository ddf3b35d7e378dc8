"""Patches that a network takes: multiples that its trainer declares, and those learnt from what it refuses."""

from collections.abc import Sequence
from math import lcm

LEARNT_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Multiples to which a refused patch is enlarged, in turn."""


class Refusal(Exception):
    """A patch that a network does not take, with what it said."""

    @classmethod
    def of(cls, trainer: type, patch_size: Sequence[int], error: Exception) -> "Refusal":
        said = str(error).strip().splitlines() or [""]
        return cls(
            f"the network of {trainer.__name__} refuses the patch {' x '.join(map(str, patch_size))} "
            f"({type(error).__name__}: {said[0]})"
        )


def rounded_up(
    patch_size: Sequence[int], declared: int | Sequence[int], learnt: int, products: Sequence[int] | None
) -> tuple[int, ...]:
    """The smallest patch at least as large as `patch_size` whose sizes are multiples of all that is required.

    Args:
        patch_size: Sizes in voxels.
        declared: Multiple of every axis, or one per axis, of which 2D uses the last.
        learnt: A further multiple of every axis.
        products: Products of the strides per axis, if the network has them; None otherwise.

    Raises:
        ValueError: for the wrong number of declared multiples, or one below 1.
    """
    axes = len(patch_size)
    every = [declared] * axes if isinstance(declared, int) else list(declared)[-axes:]
    if len(every) != axes or min(every) < 1:
        raise ValueError(f"`patch_multiple`={declared} must be a positive number, or one per axis")
    multiples = [lcm(m, learnt, product) for m, product in zip(every, products or [1] * axes, strict=True)]
    return tuple(-(-int(size) // m) * m for size, m in zip(patch_size, multiples, strict=True))
