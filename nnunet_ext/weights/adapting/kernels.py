"""Kernels of convolutions for other input channels and other kernel sizes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.networks.adapting.grids import along
from nnunet_ext.networks.adapting.tied import NotAdaptable

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
CHANNELS, SIZE = "for other input channels", "to another kernel size"


def adapt_kernel(
    kernel: Tensor, shape: Sequence[int], module: Any, image_channels: tuple[int, int] | None
) -> tuple[Tensor, list[str]]:
    """A kernel for the convolution `module`, and what was changed.

    Args:
        kernel: Kernel in the file.
        shape: Shape of the new kernel, of the same number of axes.
        module: The new convolution.
        image_channels: Channels of the image for the file's network and for the new one; kernels with these numbers of
            input channels read the image. None: unknown.

    Raises:
        NotAdaptable: for other channels within the network.
    """
    changes, transposed = [], isinstance(module, Transposed)
    reads_image = not transposed and image_channels == (kernel.shape[1], shape[1])
    if reads_image and kernel.shape[1] != shape[1]:
        kernel = change_channels(kernel, shape[1])
        changes.append(CHANNELS)
    if kernel.shape[:2] != tuple(shape[:2]):
        raise NotAdaptable("another width")
    for axis in range(2, kernel.ndim):
        old, new = kernel.shape[axis], shape[axis]
        if old == new:
            continue
        if transposed:
            kernel = along(_overlaps(old, new) / old, kernel, axis)
        elif not _is_padded(module, axis - 2):
            kernel = along(_overlaps(old, new) / new, kernel, axis)
        elif (old - new) % 2 == 0:
            kernel = resize_centred(kernel, new, axis)
        else:
            raise NotAdaptable("a kernel without a centre")
        changes.append(SIZE)
    return kernel, sorted(set(changes))


def change_channels(kernel: Tensor, channels: int) -> Tensor:
    """A kernel (C, M, ...) that reads an image of M' = `channels` channels.

    Channel m of the larger image belongs to channel m mod min(M, M') of the smaller one. More channels: the kernel of
    each is repeated and divided by the number of its copies. Fewer: those that belong to one channel are added up. An
    image whose further channels are copies of the first ones gives the same result with either kernel, in size too,
    and more, then fewer, is the identity.
    """
    given = kernel.shape[1]
    if channels < given:
        return torch.stack([kernel[:, m::channels].sum(1) for m in range(channels)], 1)
    source = torch.arange(channels) % given
    copies = torch.bincount(source, minlength=given).to(kernel.dtype)[source]
    return kernel[:, source] / copies.view(1, -1, *(1,) * (kernel.ndim - 2))


def resize_centred(kernel: Tensor, size: int, axis: int) -> Tensor:
    """An odd kernel whose centre stays, along one axis.

    A larger kernel is padded with zeros, which is the same function. A smaller one adds the taps that are cut off to
    its outermost ones: voxels there stand for those beyond, so that maps that are constant along the axis have the same
    response, whose size cropping alone would change. Larger, then smaller, is the identity.
    """
    kernel = kernel.movedim(axis, 0)
    margin = abs(len(kernel) - size) // 2
    if size > len(kernel):
        resized = kernel.new_zeros(size, *kernel.shape[1:])
        resized[margin : size - margin] = kernel
    else:
        resized = kernel[margin : margin + size].clone()
        resized[0] += kernel[:margin].sum(0)
        resized[-1] += kernel[margin + size :].sum(0)
    return resized.movedim(0, axis)


def _overlaps(old: int, new: int) -> Tensor:
    """Matrix (new, old) of the overlaps between `old` and `new` equal parts of an interval, in units of 1 / (old new).

    A kernel as large as its stride, a patch embedding, covers the same field of view with other voxels. Its taps are
    divided or added up, so that a map that is constant within the larger voxels has the same response: the divisor is
    `new`. A transposed one writes voxels, which are repeated or averaged: the divisor is `old`. For both, up by a whole
    factor and then down is the identity.
    """
    ends = (
        torch.arange(1, new + 1, dtype=torch.float64)[:, None] * old,
        torch.arange(1, old + 1, dtype=torch.float64) * new,
    )
    return (torch.minimum(*ends) - torch.maximum(ends[0] - old, ends[1] - new)).clamp_min(0)


def _is_padded(module: Any, axis: int) -> bool:
    return isinstance(module.padding, str) or module.padding[axis] > 0
