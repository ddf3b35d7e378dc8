"""Discrete Fourier transforms in real arithmetic: a matrix product per axis, for runtimes without complex numbers.

With positions x and frequencies k of an axis of length N, the transform is

    X(k) = sum_x exp(-2 pi i k x / N) x(x)
    [Re X]   [ cos  sin] [Re x]
    [Im X] = [-sin  cos] [Im x],  cos and sin of 2 pi (k x mod N) / N

and the inverse has the other sign. k x is reduced modulo N in integers, so that the angles of long axes are exact. A
complex number is a pair (real, imaginary) along a last axis of length 2. A dense product costs N operations per value
where the FFT costs log N; for the sizes of patches it remains below the cost of the convolutions.
"""

from collections.abc import Sequence
from math import pi, prod, sqrt

import numpy as np
import torch
from torch import Tensor

_NORMS = ("backward", "ortho", "forward")


def fftn(x: Tensor, axes: Sequence[int], norm: str = "backward") -> Tensor:
    """`torch.fft.fftn` of a real map, as pairs.

    Shape:
        (...) -> (..., 2)
    """
    *others, last = axes
    size = _length(x, last)
    pairs = _product(x[..., None], last, _phases(range(size), range(size), size, -1))
    return _scaled(_fft(pairs, others, -1), [_length(x, axis) for axis in axes], norm)


def rfftn(x: Tensor, axes: Sequence[int], norm: str = "backward") -> Tensor:
    """`torch.fft.rfftn` as pairs: frequencies 0 .. N // 2 of the last of `axes`.

    Shape:
        (...) -> (..., 2)
    """
    *others, last = axes
    size = _length(x, last)
    pairs = _product(x[..., None], last, _phases(range(size // 2 + 1), range(size), size, -1))
    return _scaled(_fft(pairs, others, -1), [_length(x, axis) for axis in axes], norm)


def irfftn(pairs: Tensor, axes: Sequence[int], length: int, norm: str = "backward") -> Tensor:
    """`nnunet_ext.blocks.real_inverse` of a half spectrum in pairs.

    Frequencies that a real result has twice (all but 0 and N / 2 of the last axis) count twice; those that are their
    own partners contribute their real part, because their sine is 0 at every position.

    Args:
        pairs: Spectrum, halved along the last of `axes`.
        axes: Axes to transform, counted without the axis of the pairs.
        length: N, length of the result along the last of `axes`.
        norm: Normalisation, as in torch.fft.

    Shape:
        (..., 2) -> (...)
    """
    *others, last = axes
    half = length // 2 + 1
    weights = np.full(half, 2.0)
    weights[0] = 1
    if length % 2 == 0:
        weights[-1] = 1
    real = _phases(range(length), range(half), length, 1) * weights
    sizes = [*(_length(pairs, axis) for axis in others), length]
    return _scaled(_product(_fft(pairs, others, 1), last, real, real_result=True), sizes, norm, inverse=True)[..., 0]


def real_ifftn(pairs: Tensor, axes: Sequence[int], norm: str = "backward") -> Tensor:
    """Real part of `torch.fft.ifftn` of a whole spectrum in pairs.

    Shape:
        (..., 2) -> (...)
    """
    *others, last = axes
    size = _length(pairs, last)
    phases = _phases(range(size), range(size), size, 1)
    sizes = [_length(pairs, axis) for axis in axes]
    return _scaled(_product(_fft(pairs, others, 1), last, phases, real_result=True), sizes, norm, inverse=True)[..., 0]


def multiplied(a: Tensor, b: Tensor) -> Tensor:
    """Product of complex numbers in pairs that broadcast."""
    (a_real, a_imaginary), (b_real, b_imaginary) = (x.unbind(-1) for x in (a, b))
    real = a_real * b_real - a_imaginary * b_imaginary
    return torch.stack((real, a_real * b_imaginary + a_imaginary * b_real), -1)


def _length(x: Tensor, axis: int) -> int:
    return int(x.shape[axis])  # a tensor under torch.jit.trace


def _fft(pairs: Tensor, axes: Sequence[int], sign: int) -> Tensor:
    for axis in axes:
        size = _length(pairs, axis)
        pairs = _product(pairs, axis, _phases(range(size), range(size), size, sign))
    return pairs


def _phases(rows: range, columns: range, size: int, sign: int) -> np.ndarray:
    """exp(sign 2 pi i r c / size)."""
    return np.exp(sign * 2j * pi * (np.outer(rows, columns) % size) / size)


def _product(pairs: Tensor, axis: int, matrix: np.ndarray, real_result: bool = False) -> Tensor:
    """Applies a complex matrix along an axis of pairs, or of real numbers (a last axis of length 1)."""
    parts, rows = pairs.shape[-1], matrix.shape[0]
    blocks = np.stack((matrix, 1j * matrix)[:parts], -1).reshape(rows, -1)  # a column per part of the input
    real = blocks.real if real_result else np.stack((blocks.real, blocks.imag), 1).reshape(2 * rows, -1)
    weights = torch.tensor(np.ascontiguousarray(real.T), dtype=pairs.dtype, device=pairs.device)
    product = pairs.movedim(axis, -2).flatten(-2) @ weights
    return product.unflatten(-1, (rows, 1 if real_result else 2)).movedim(-2, axis)


def _scaled(x: Tensor, sizes: Sequence[int], norm: str, inverse: bool = False) -> Tensor:
    if norm not in _NORMS:
        raise ValueError(f"unknown `norm` {norm!r}; known: {', '.join(_NORMS)}")
    if norm == "ortho":
        return x / sqrt(prod(sizes))
    return x / prod(sizes) if norm == ("backward" if inverse else "forward") else x
