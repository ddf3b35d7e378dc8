"""The real inverse transform of a spectrum that may not belong to a real map."""

from collections.abc import Sequence

import torch
from torch import Tensor


def real_inverse(spectrum: Tensor, axes: Sequence[int], length: int, norm: str = "backward") -> Tensor:
    """`irfftn` over `axes` as NumPy defines it, on every device.

    A learnt filter times the spectrum of a real map is not the spectrum of a real map: its planes at 0 and at the
    highest frequency of the last axis are not conjugate symmetric. NumPy, and PyTorch on the CPU, transform the other
    axes first and then ignore the part that a real result cannot have. Transforms over several axes at once, such as
    cuFFT's, assume the symmetry on every axis and give another result. Hence this function transforms one axis at a
    time.

    Args:
        spectrum: Spectrum, halved along the last of `axes` as `rfftn` returns it.
        axes: Axes to transform.
        length: Length of the result along the last of `axes`.
        norm: Normalisation, as in torch.fft.
    """
    *others, last = axes
    if others:
        spectrum = torch.fft.ifftn(spectrum, dim=others, norm=norm)
    return torch.fft.irfft(spectrum, n=length, dim=last, norm=norm)
