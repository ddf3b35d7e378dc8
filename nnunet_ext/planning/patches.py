"""Patches that a network takes: multiples that its trainer declares, and those learnt from what it refuses."""

from collections.abc import Sequence
from math import lcm

from nnunet_ext.networks.topology import patch_multiples
from nnunet_ext.utils.messages import first_line

LEARNT_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
"""Multiples to which a refused patch is enlarged, in turn."""


class Refusal(Exception):
    """A patch that a network does not take, with what it said."""

    @classmethod
    def of(cls, trainer: type, patch_size: Sequence[int], error: Exception) -> "Refusal":
        patch = " x ".join(map(str, patch_size))
        return cls(f"the network of {trainer.__name__} refuses the patch {patch} ({first_line(error)})")


def rounded_up(
    patch_size: Sequence[int], declared: int | Sequence[int], learnt: int, strides: Sequence[Sequence[int]] | None
) -> tuple[int, ...]:
    """The smallest patch at least as large as `patch_size` whose sizes are multiples of all that is required.

    Args:
        patch_size: Sizes in voxels.
        declared: As for `patch_multiples`.
        learnt: A further multiple of every axis.
        strides: As for `patch_multiples`.

    Raises:
        ValueError: as for `patch_multiples`.
    """
    multiples = [lcm(m, learnt) for m in patch_multiples(declared, len(patch_size), strides)]
    return tuple(-(-int(size) // m) * m for size, m in zip(patch_size, multiples, strict=True))
