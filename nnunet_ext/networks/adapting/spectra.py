"""Filters on a discrete spectrum, cropped or extended to the spectrum of another grid over the same field of view.

A filter multiplies every frequency k, in cycles per patch, by its own factor M(k). The same continuous image sampled by
n or by m voxels has the same amplitudes X(k) below both Nyquist frequencies, up to the transform's norm, which the
inverse transform undoes (SASAN divides by the number of voxels once, EM-Net by its root twice). So the factors keep
their frequencies and need no scale: a smaller grid loses the highest ones, a larger one gets zeros there, with which
the layer computes the old result, interpolated.

An even size n has one bin for both n/2 and -n/2. A larger grid has a bin for each, and both take its factor, so that an
image at exactly this frequency is filtered as before; a smaller one takes the mean of both. Up and then down is the
identity.
"""

from torch import Tensor


def resize_full(filters: Tensor, new: int, axis: int) -> Tensor:
    """Crops or extends an axis of all frequencies in the FFT's order (zero first), real or complex."""
    old = filters.shape[axis]
    if new == old:
        return filters
    filters = filters.movedim(axis, 0)
    kept = min(old, new)
    positive, negative = (kept + 1) // 2, (kept - 1) // 2
    result = filters.new_zeros(new, *filters.shape[1:])
    result[:positive] = filters[:positive]
    result[new - negative :] = filters[old - negative :]
    if kept % 2 == 0:
        half = kept // 2
        if new > old:
            result[half] = result[new - half] = filters[half]
        else:
            result[half] = (filters[half] + filters[old - half]) / 2
    return result.movedim(0, axis)


def resize_half(filters: Tensor, new: int, axis: int) -> Tensor:
    """Crops or extends an axis of the frequencies 0 .. n // 2 of a real transform to those of length `new`.

    The factor of a real transform's last bin acts on k and -k alike, so it is copied in both directions.
    """
    filters = filters.movedim(axis, 0)
    bins = new // 2 + 1
    result = filters.new_zeros(bins, *filters.shape[1:])
    kept = min(bins, filters.shape[0])
    result[:kept] = filters[:kept]
    return result.movedim(0, axis)
