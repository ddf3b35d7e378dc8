"""The inverse transform of a spectrum that need not be that of a real map."""

from collections.abc import Sequence

import torch
from torch import Tensor


def real_inverse(spectrum: Tensor, axes: Sequence[int], length: int, norm: str = "backward") -> Tensor:
    """`irfftn` over `axes` as NumPy defines it, on every device.

    A learnt filter's product with the spectrum of a real map is no such spectrum: its planes at 0 and at the highest
    frequency of the last axis are not conjugate symmetric. NumPy and PyTorch's CPU ignore what a real result cannot
    have after transforming the other axes; transforms over several axes at once, as cuFFT's, take the symmetry for
    granted on every axis and give something else. Hence one axis after the other.

    Args:
        spectrum: Half of it along the last of `axes`, as `rfftn` gives it.
        axes: To transform.
        length: Of the result along the last of `axes`.
        norm: As torch.fft has it.
    """
    *others, last = axes
    if others:
        spectrum = torch.fft.ifftn(spectrum, dim=others, norm=norm)
    return torch.fft.irfft(spectrum, n=length, dim=last, norm=norm)
