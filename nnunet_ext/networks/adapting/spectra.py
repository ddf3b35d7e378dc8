"""Filters on a discrete spectrum, for another grid.

A filter multiplies the amplitude at every frequency by its own factor: M(k) at k cycles per patch. In a patch that is
`zoom` times as long, the same frequency in cycles per mm is at zoom k:

    M'(k') = M(k' / zoom) where the old grid has this frequency, otherwise 0

* The same field of view in other voxels, zoom = 1: M is cropped, or extended by zeros. The image's amplitudes X(k) are
  those of the continuous image on either grid, up to the norm of the transform, which the inverse transform undoes
  (SASAN divides by the number of voxels once, EM-Net by its root twice). So the factors need no scale, and an image
  that both grids represent is filtered as before; of a larger spectrum the layer computes the old result, interpolated.
* The same voxels in a longer or shorter patch, zoom = m / n: M is interpolated between its frequencies by the
  trigonometric polynomial through them. This is the filter's kernel in space, surrounded by zeros or folded into the
  shorter patch. An image that repeats that of the shorter patch is filtered as before.

An even number n of voxels has one bin for both n / 2 and -n / 2. A larger spectrum has a bin for each, and both take
its factor; a smaller one takes the mean of both. In both cases above, up and then down is the identity.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import pi

import torch
from torch import Tensor

from nnunet_ext.networks.adapting.grids import along

_EXACT = 1e-9
"""Distance below which a frequency counts as one of the old ones."""


def resize_spectrum(filters: Tensor, axes: Sequence[int], size: Sequence[int], zoom: Sequence[float]) -> Tensor:
    """Filters for all frequencies along `axes`, in the FFT's order (zero first), for other sizes.

    Args:
        filters: Real factors, or real and imaginary parts along another axis.
        axes: Axes of the frequencies.
        size: Voxels of the new grid, per axis.
        zoom: Length of the new patch in units of the old one, per axis.
    """
    for axis, new, z in zip(axes, size, zoom, strict=True):
        old = filters.shape[axis]
        if (old, z) != (new, 1):
            filters = along(_interpolation(old, new, z), filters, axis)
    return filters


def resize_half_spectrum(filters: Tensor, old: Sequence[int], size: Sequence[int], zoom: Sequence[float]) -> Tensor:
    """Filters of a transform of real maps, (C, ..., n // 2 + 1, 2): complex factors, their parts in the last axis.

    Half of the spectrum is stored, because the result is real: M(-k) = conj(M(k)). The other half is completed by this
    rule, resized with it, and left out again. Along the last axis, learnt factors of the bins 0 and n / 2 need not
    follow it. They are copied as they are, but interpolated by the part that has an effect, (M(k) + conj(M(-k))) / 2.

    Args:
        filters: Factors.
        old: Voxels of the old grid, per axis.
        size: Voxels of the new grid, per axis.
        zoom: Length of the new patch in units of the old one, per axis.
    """
    *others, last = range(1, 1 + len(old))
    if zoom[-1] != 1:
        filters = _effective(filters, old[-1])
    full = resize_spectrum(_completed(filters, old[-1]), others, size[:-1], zoom[:-1])
    bins = size[-1] // 2 + 1
    if (old[-1], zoom[-1]) != (size[-1], 1):
        full = along(_rows(torch.arange(bins, dtype=torch.float64) / zoom[-1], old[-1]), full, last)
    return full.narrow(last, 0, bins).contiguous()


@lru_cache
def _interpolation(old: int, new: int, zoom: float) -> Tensor:
    """Matrix (new, old) from M to M'."""
    frequency = torch.fft.fftfreq(new, 1 / new, dtype=torch.float64)
    matrix = _rows(frequency / zoom, old)
    if new % 2 == 0:
        half = new // 2
        matrix[half] = (matrix[half] + _rows(-frequency[half : half + 1] / zoom, old)[0]) / 2
    return matrix


def _rows(frequency: Tensor, n: int) -> Tensor:
    """Matrix (frequencies, n) that evaluates the trigonometric polynomial through n factors; 0 beyond the last bin.

    An entry is 1 / n times the sum of cos(2 pi x u / n), u = k - f, over the voxels x of a kernel around 0, whose ends
    count half if n is even: sin(pi u) / (n sin(pi u / n)) for odd n, sin(pi u) / (n tan(pi u / n)) for even n.
    """
    beyond = frequency.abs() > n // 2 + 0.5 + _EXACT
    frequency = frequency.clamp(-n / 2, n / 2)
    angle = pi * (torch.arange(n, dtype=torch.float64) - frequency[:, None])
    rows = angle.sin() / (n * ((angle / n).sin() if n % 2 else (angle / n).tan()))
    known = frequency.round()
    exact = torch.nn.functional.one_hot(known.long() % n, n).double()
    rows = torch.where(((frequency - known).abs() < _EXACT)[:, None], exact, rows)
    return rows.masked_fill(beyond[:, None], 0)


def _completed(filters: Tensor, n: int) -> Tensor:
    """All n frequencies along the second last axis, from the first n // 2 + 1."""
    last = filters.ndim - 2
    return torch.cat((filters, _partners(filters.narrow(last, 1, (n - 1) // 2).flip(last))), last)


def _effective(filters: Tensor, n: int) -> Tensor:
    """The same filters, of which the bins that are their own partners follow M(-k) = conj(M(k))."""
    last = filters.ndim - 2
    filters = filters.clone()
    for index in {0, n // 2} if n % 2 == 0 else {0}:
        plane = filters.narrow(last, index, 1)
        plane.copy_((plane + _partners(plane)) / 2)
    return filters


def _partners(filters: Tensor) -> Tensor:
    """conj(M(-k)) along all but the last axis of frequencies, indices modulo the size."""
    for axis in range(1, filters.ndim - 2):
        filters = filters.flip(axis).roll(1, axis)
    return filters * filters.new_tensor([1.0, -1.0])
