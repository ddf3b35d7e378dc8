"""The masked low band of an image: its spectrum, cropped, times a mask, back in space.

Source: Huang et al., "SASAN: Spectrum-Axial Spatial Approach Networks for Medical Image Segmentation".

Order of a stored mask: the transform is real, so M(k) and M(-k) always act together. Along the last axis, `fold_mask`
therefore stores M(k) for the half spectrum k_n = 0 .. P_n // 2 in the FFT's order, followed by M(-k) for
k_n = 1 .. (P_n - 1) // 2. The two partners are at a constant distance, and nothing is flipped or shifted at run time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nnunet_ext.ops import real_dft
from nnunet_ext.ops.once import differentiable_once
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.utils.torch_private import in_function_transform

_SLAB_ELEMENTS = 1 << 18
"""Number of values transformed at a time on the CPU."""


def image_spectrum(image: Tensor) -> Tensor:
    """FFT over the spatial axes, divided by the number of voxels, in at least float32 even under autocast.

    Shape:
        (B, M, *P) -> complex (B, M, *P); with portable operators or under torch.compile real and imaginary parts,
        (B, M, *P, 2)
    """
    with torch.autocast(image.device.type, enabled=False):
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        if is_portable():
            return real_dft.fftn(image, _spatial(image), norm="forward")
        if torch.compiler.is_compiling() and not image.requires_grad:
            return _spectrum(image)
        return torch.fft.fftn(image, dim=_spatial(image), norm="forward")


def crop_spectrum(spectrum: Tensor, size: Sequence[int]) -> Tensor:
    """The box of `size` around the zero frequency: frequencies -(size // 2) .. size - size // 2 - 1 on every axis.

    Shape:
        (B, M, *P) -> (B, M, *size)
    """
    for axis, new in enumerate(size, start=2):
        old = spectrum.shape[axis]
        if new != old:
            negative = new // 2
            parts = (spectrum.narrow(axis, 0, new - negative), spectrum.narrow(axis, old - negative, negative))
            spectrum = torch.cat(parts, axis)
    return spectrum


def fold_mask(mask: Tensor) -> Tensor:
    """Converts a mask from the FFT's order (zero frequency first) to that of a stored mask, both (1, C, *P_l)."""
    half = _half(mask.shape[-1])
    partners = _reflect(mask, _spatial(mask))[..., 1 : 1 + mask.shape[-1] - half]
    return torch.cat((mask[..., :half], partners), -1)


def unfold_mask(stored: Tensor) -> Tensor:
    """Inverse of `fold_mask`."""
    half = _half(stored.shape[-1])
    partners = _reflect(stored[..., half:].flip(-1), _spatial(stored)[:-1])
    return torch.cat((stored[..., :half], partners), -1)


def low_band_reference(stored: Tensor, spectrum: Tensor) -> Tensor:
    """Naive reference implementation of `low_band`: the real part of the full inverse transform."""
    modality = torch.arange(stored.shape[1], device=stored.device) % spectrum.shape[1]
    masked = unfold_mask(stored) * spectrum[:, modality]
    return torch.fft.ifftn(masked, dim=_spatial(spectrum), norm="forward").real


def portable_low_band(stored: Tensor, spectrum: Tensor) -> Tensor:
    """`low_band_reference` in real arithmetic, on a spectrum (B, M, *P_l, 2) of real and imaginary parts."""
    masked = unfold_mask(stored)[..., None] * spectrum[:, [c % spectrum.shape[1] for c in range(stored.shape[1])]]
    return real_dft.real_ifftn(masked, _spatial(stored), norm="forward")


def masked_low_band(stored: Tensor, spectrum: Tensor) -> Tensor:
    """The masked low band of an image.

    Shape:
        mask (1, C, *P_l), spectrum as `image_spectrum` returned it; result (B, C, *P_l).
    """
    if not is_portable() and not spectrum.is_complex():
        return _low_band(stored, spectrum)
    size = stored.shape[2:]
    return low_band(stored, crop_spectrum(spectrum, size), symmetric=size == spectrum.shape[2 : 2 + len(size)])


def low_band(stored: Tensor, spectrum: Tensor, symmetric: bool) -> Tensor:
    """Re(sum over k of M_c(k) S_{c mod M}(k) exp(2 pi i k x / P_l)), the masked low band of the image.

    Only the Hermitian part (Z(k) + conj(Z(-k))) / 2 of Z = M S has a real transform. It is computed on the half
    spectrum, where one real inverse transform replaces the complex one at half the cost.

    Args:
        stored: Real mask M in the order of `fold_mask`.
        spectrum: Image spectrum S cropped to the level, divided by the number of the image's voxels.
        symmetric: Whether S(-k) = conj(S(k)) for every k, which holds without cropping (cropping to an even size cuts
            off one of the two Nyquist planes).

    Shape:
        stored (1, C, *P_l), spectrum complex (B, M, *P_l), result (B, C, *P_l).
    """
    if is_portable():
        return portable_low_band(stored, spectrum)
    if (spectrum.requires_grad and torch.is_grad_enabled()) or in_function_transform():
        return low_band_reference(stored, spectrum)
    return _LowBand.apply(stored, *_halves(spectrum, symmetric))


def _halves(spectrum: Tensor, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """S and S' = conj(S(-k)) on the half spectrum; None for S' if they are equal."""
    half = _half(spectrum.shape[-1])
    if symmetric:
        return spectrum[..., :half], None
    return spectrum[..., :half], _reflect(spectrum, _spatial(spectrum))[..., :half].conj().resolve_conj()


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _half(size: int) -> int:
    return size // 2 + 1


def _reflect(x: Tensor, axes: Sequence[int]) -> Tensor:
    """x(-k) from x(k), indices modulo the size of each axis."""
    axes = tuple(axes)
    return torch.roll(torch.flip(x, axes), (1,) * len(axes), axes) if axes else x


def _per_channel(spectrum: Tensor, channels: int) -> Tensor:
    """(..., M) -> (..., C), where channel c takes modality c mod M; a single modality is broadcast."""
    modalities = spectrum.shape[-1]
    if modalities == 1:
        return spectrum
    return spectrum[..., torch.arange(channels, device=spectrum.device) % modalities]


def _real_product(a: Tensor, b: Tensor) -> Tensor:
    """Re(conj(a) b)."""
    return a.real * b.real + a.imag * b.imag


class _LowBand(torch.autograd.Function):
    """`low_band` with the gradient of the mask only, sample by sample; arrays here are channels last, (*P_l, C).

    With the partner's mask M' = M(-k) and S' = conj(S(-k)), the half spectrum is (M S + M' S') / 2. In the backward
    pass, with the transform G of the incoming gradient, dM = Re(conj(S) G) and dM' = Re(conj(S') G), each halved on the
    planes that are their own partners.
    """

    @staticmethod
    def forward(ctx, stored, here, there):
        ctx.save_for_backward(here, there)
        return _transformed(stored.detach(), here, there)

    @staticmethod
    @differentiable_once("sasan_low_band")
    def backward(ctx, *grads):
        return _mask_gradient(grads[0], *ctx.saved_tensors), None, None


def _transformed(stored: Tensor, here: Tensor, there: Tensor | None) -> Tensor:
    mask = stored[0].movedim(0, -1)
    low = [_inverse(_HalfSpectrum(mask, s, partner)) for s, partner in _samples(here, there)]
    return torch.stack(low).movedim(-1, 1) if len(low) > 1 else low[0][None].movedim(-1, 1)


def _mask_gradient(grad: Tensor, here: Tensor, there: Tensor | None) -> Tensor:
    grad = grad.movedim(1, -1)
    out = torch.zeros_like(grad[0], memory_format=torch.contiguous_format)
    for g, (s, partner) in zip(grad.unbind(0), _samples(here, there), strict=True):
        _add_mask_gradient(out, g, s, partner)
    return out.movedim(-1, 0)[None]


# Inductor makes no code for complex numbers. As operators, the transforms run as in eager mode, and what the compiler
# sees is real.
@torch.library.custom_op("nnunet_ext::image_spectrum", mutates_args=())
def _spectrum(image: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.fftn(image, dim=_spatial(image), norm="forward")).contiguous()


@_spectrum.register_fake
def _(image):
    return image.new_empty(*image.shape, 2)


@torch.library.custom_op("nnunet_ext::sasan_low_band", mutates_args=())
def _low_band(stored: Tensor, spectrum: Tensor) -> Tensor:
    """`masked_low_band` of a spectrum of real and imaginary parts."""
    return _transformed(stored, *_halves_of_level(spectrum, stored.shape[2:]))


@_low_band.register_fake
def _(stored, spectrum):
    return spectrum.new_empty(spectrum.shape[0], *stored.shape[2:], stored.shape[1]).movedim(-1, 1)


@torch.library.custom_op("nnunet_ext::sasan_low_band_backward", mutates_args=())
def _low_band_backward(grad: Tensor, spectrum: Tensor) -> Tensor:
    return _mask_gradient(grad, *_halves_of_level(spectrum, grad.shape[2:]))


@_low_band_backward.register_fake
def _(grad, spectrum):
    return grad.new_empty(*grad.shape[2:], grad.shape[1]).movedim(-1, 0)[None]


def _save_spectrum(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _differentiate(ctx, grad):
    return _low_band_backward(grad, ctx.saved_tensors[0]), None


_low_band.register_autograd(_differentiate, setup_context=_save_spectrum)


def _halves_of_level(spectrum: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    whole = torch.view_as_complex(spectrum)
    return _halves(crop_spectrum(whole, size), symmetric=tuple(size) == tuple(whole.shape[2:]))


def _samples(here: Tensor, there: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """S and S' of each sample, channels last; S twice if they are equal."""
    own = here.movedim(1, -1).unbind(0)
    return list(zip(own, own if there is None else there.movedim(1, -1).unbind(0), strict=True))


class _HalfSpectrum:
    """The Hermitian part of mask times spectrum on the half spectrum, in slabs along the second axis."""

    def __init__(self, mask: Tensor, s: Tensor, partner: Tensor) -> None:
        self.mask, self.s, self.partner = mask, s, partner
        self.size, self.channels, self.half = mask.shape[:-1], mask.shape[-1], s.shape[-2]
        self.planes = {}
        for plane in _self_partnered(self.half, mask.shape[-2]):
            own = 0.5 * mask[..., plane, :]
            other = _reflect(own, range(own.ndim - 1))
            here, there = (_per_channel(i[..., plane, :], self.channels) for i in (s, partner))
            self.planes[plane] = own * here + other * there

    def slab(self, index: slice) -> Tensor:
        """(P_1, index, ..., P_n // 2 + 1, C); in 2D, where the second axis is the last, `index` must be full."""
        at = (slice(None), index) if len(self.size) == 3 else (slice(None),)
        mask, s, partner = self.mask[at], self.s[at], self.partner[at]
        out = s.new_empty(*s.shape[:-1], self.channels)
        paired = slice(1, 1 + self.size[-1] - self.half)
        own, other = 0.5 * mask[..., paired, :], 0.5 * mask[..., self.half :, :]
        here = _per_channel(s[..., paired, :], self.channels)
        if self.s is self.partner:
            out[..., paired, :] = own.add_(other) * here
        else:
            out[..., paired, :] = (own * here).add_(other * _per_channel(partner[..., paired, :], self.channels))
        for plane, values in self.planes.items():
            out[..., plane, :] = values[at]
        return out


def _in_slabs(x: Tensor) -> bool:
    """Whether to transform in slabs, whose temporaries stay in the cache: for large 3D maps on the CPU."""
    large = x.ndim == 4 and x.numel() > _SLAB_ELEMENTS
    return large and x.device.type == "cpu" and not torch.compiler.is_compiling()


def _slabs(x: Tensor, axis: int) -> Iterator[slice]:
    step = max(1, _SLAB_ELEMENTS * x.shape[axis] // x.numel())
    return (slice(start, start + step) for start in range(0, x.shape[axis], step))


def _inverse(spectrum: _HalfSpectrum) -> Tensor:
    """Real transform of a half spectrum, (*P_l, C), contiguous in this order."""
    size = spectrum.size
    axes = tuple(range(len(size)))
    if not _in_slabs(spectrum.mask):
        return torch.fft.irfftn(spectrum.slab(slice(None)), s=size, dim=axes, norm="forward").contiguous()
    columns = spectrum.s.new_empty(*spectrum.s.shape[:-1], spectrum.channels)
    for j in _slabs(columns, 1):
        columns[:, j] = torch.fft.ifft(spectrum.slab(j), dim=0, norm="forward")
    out = spectrum.mask.new_empty(*size, spectrum.channels)
    for i in _slabs(out, 0):
        out[i] = torch.fft.irfftn(columns[i], s=size[1:], dim=axes[1:], norm="forward")
    return out


def _add_mask_gradient(out: Tensor, grad: Tensor, s: Tensor, partner: Tensor) -> None:
    half, channels = s.shape[-2], grad.shape[-1]
    axes = tuple(range(grad.ndim - 1))
    if _in_slabs(grad):
        columns = s.new_empty(*s.shape[:-1], channels)
        for i in _slabs(columns, 0):
            columns[i] = torch.fft.rfftn(grad[i], dim=axes[1:])
        for j in _slabs(columns, 1):
            columns[:, j] = torch.fft.fft(columns[:, j], dim=0)
            _add_paired(out[:, j], columns[:, j], s[:, j], partner[:, j])
    else:
        columns = torch.fft.rfftn(grad, dim=axes)
        _add_paired(out, columns, s, partner)
    for plane in _self_partnered(half, out.shape[-2]):
        own, other = (
            0.5 * _real_product(_per_channel(i[..., plane, :], channels), columns[..., plane, :]) for i in (s, partner)
        )
        out[..., plane, :] += own + _reflect(other, range(other.ndim - 1))


def _add_paired(out: Tensor, transform: Tensor, s: Tensor, partner: Tensor) -> None:
    half, channels = s.shape[-2], out.shape[-1]
    paired = slice(1, 1 + out.shape[-2] - half)
    for source, target in ((s, out[..., paired, :]), (partner, out[..., half:, :])):
        values = _per_channel(source[..., paired, :], channels)
        target.add_(_real_product(values, transform[..., paired, :]))


def _self_partnered(half: int, size: int) -> list[int]:
    """Planes k_n of the half spectrum with -k_n = k_n modulo the size: 0 and, for even sizes, size / 2."""
    return [0] if size % 2 else [0, half - 1]
