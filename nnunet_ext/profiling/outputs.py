"""Sizes of a network's outputs, without running it."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from nnunet_ext.utils.fake_modules import run_on_fake_tensors


def measured_scales(
    build: Callable[[int], nn.Module], input_channels: int, patch_size: Sequence[int]
) -> list[list[float]]:
    """Sizes of a network's outputs relative to the patch, per output and axis, from a pass on fake tensors.

    Args:
        build: Function from the number of input channels to the network, with deep supervision.
        input_channels: Channels of the input.
        patch_size: Sizes of the patch in voxels.

    Raises:
        ValueError: if the network returns one tensor instead of several.
    """
    network, outputs = run_on_fake_tensors(lambda: build(input_channels), input_channels, patch_size)
    if isinstance(outputs, torch.Tensor):
        raise ValueError(
            f"{type(network).__name__} returns one output under deep supervision; set `has_lower_outputs = False` on "
            "the trainer, or let the network return a list"
        )
    return [[size / full for size, full in zip(y.shape[2:], patch_size, strict=True)] for y in outputs]
