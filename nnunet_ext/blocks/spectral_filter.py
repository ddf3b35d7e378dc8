"""A filter on the spectrum of a real map."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunet_ext.blocks.real_inverse import real_inverse
from nnunet_ext.ops import real_dft
from nnunet_ext.ops.portable import is_portable


def filter_spectrum(x: Tensor, weight: Tensor, axes: Sequence[int]) -> Tensor:
    """irfftn(rfftn(x) * W) with orthonormal transforms over `axes`.

    Args:
        x: Real map.
        weight: W, real and imaginary part in its last axis; broadcasts with the half spectrum.
        axes: Axes to transform; the spectrum is halved along the last of them.

    Shape:
        (...) -> (...)
    """
    length = int(x.shape[axes[-1]])  # a tensor under torch.jit.trace
    if is_portable():
        pairs = real_dft.multiplied(real_dft.rfftn(x, axes, norm="ortho"), weight)
        return real_dft.irfftn(pairs, axes, length, norm="ortho")
    spectrum = torch.fft.rfftn(x, dim=tuple(axes), norm="ortho") * torch.view_as_complex(weight.contiguous())
    return real_inverse(spectrum, axes, length, norm="ortho")
