"""FINE (Frequency Integrated Neural Enhancer): mixes a feature map with the masked low band of the input image.

Source: Huang et al., "SASAN: Spectrum-Axial Spatial Approach Networks for Medical Image Segmentation".

Differences from the authors' code:
* Because the mixing rate is a scalar, their forward and inverse transforms of the feature map cancel; here only the
  image's low band is transformed.
* They do not rescale the amplitudes of the cropped spectrum, which multiplies the low band by up to
  prod(P) / prod(P_l) (4096 at the fifth level, too much for float16); here the low band keeps the image's
  amplitudes. `nnunet_ext.weights` folds the factor into imported masks.
* They shift all axes, including batch and channels; here only spatial axes are shifted, and the shift is undone
  properly, so that every size and batch gives the right result.
* Several modalities are supported: feature channel c uses the spectrum of modality c mod M.

How masks are stored is told in `nnunet_ext.networks.sasan.low_band`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.layout import channels_last, rows
from nnunet_ext.networks.sasan.low_band import masked_low_band
from nnunet_ext.ops.once import differentiable_once
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.ops.reductions import sum_of_products
from nnunet_ext.utils.torch_private import in_function_transform

_MAX_HALF = torch.finfo(torch.float16).max


def gate_reference(x: Tensor, low: Tensor, rate: Tensor) -> Tensor:
    """Naive reference implementation of `gate`."""
    return (rate * x + (1 - rate) * low) * x


def gate(x: Tensor, low: Tensor, rate: Tensor) -> Tensor:
    """(r x + (1 - r) low) * x, computed in the wider of the types of x and low and returned in that of x.

    The product of features above 256 exceeds float16's range: the result is clamped to it, the gradient is not.

    Shape:
        x, low and result (B, C, *P); rate a scalar.
    """
    return gate_reference(x, low, rate) if is_portable() or in_function_transform() else _Gate.apply(x, low, rate)


class FINE(nn.Module):
    """FINE and the subsequent gate: x <- (r x + (1 - r) low) * x, where low is the masked low band of the image.

    Args:
        channels: C of the feature map.
        size: P_l, its spatial size in voxels.

    Shape:
        x (B, C, *P_l), spectrum of the image (B, M, *P) from `image_spectrum`; result (B, C, *P_l).
    """

    def __init__(self, channels: int, size: Sequence[int]) -> None:
        super().__init__()
        # Channels last in memory, like the transform and the CPU's feature maps.
        self.mask = nn.Parameter(torch.ones(1, *size, channels).movedim(-1, 1))
        self.rate = nn.Parameter(torch.tensor(0.5))

    def low_band(self, spectrum: Tensor) -> Tensor:
        """The masked low band of the image, (B, C, *P_l)."""
        with torch.autocast(spectrum.device.type, enabled=False):
            return masked_low_band(self.mask, spectrum)

    def forward(self, x: Tensor, spectrum: Tensor) -> Tensor:
        return gate(x, self.low_band(spectrum), self.rate)

    def extra_repr(self) -> str:
        return f"channels={self.mask.shape[1]}, size={tuple(self.mask.shape[2:])}"


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low, rate):
        ctx.save_for_backward(x, low, rate)
        wide = x.to(torch.promote_types(x.dtype, low.dtype))
        # x comes first, because results take its memory layout.
        mixed = torch.lerp(wide, low.to(wide.dtype), 1 - rate.to(wide.dtype))
        # Compiled by PyTorch up to 2.11, a result that was changed in place, or is a tensor's own alias, gets no
        # gradient, without an error.
        compiled = torch.compiler.is_compiling()
        out = mixed * wide if compiled else mixed.mul_(wide)
        if x.dtype == torch.float16:
            out = (out.clamp if compiled else out.clamp_)(-_MAX_HALF, _MAX_HALF)
        return out if out.dtype == x.dtype else out.to(x.dtype)

    @staticmethod
    @differentiable_once("sasan_gate")
    def backward(ctx, *grads):
        x, low, rate = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, low.dtype)
        grad, wide, r = grads[0].to(dtype), x.to(dtype), rate.to(dtype)
        product = grad * wide
        # d/dx = g (2 r x + (1 - r) low), d/dlow = (1 - r) g x, d/dr = sum g x (x - low)
        grad_x = torch.lerp(wide, low.to(dtype), 1 - r).addcmul_(wide, r).mul_(grad)
        grad_rate = _total(product, wide) - _total(product, low)
        return grad_x.to(x.dtype), product.mul_(1 - r).to(low.dtype), grad_rate.to(rate.dtype)


def _total(a: Tensor, b: Tensor) -> Tensor:
    form = channels_last(a.ndim)
    if a.device.type == "cpu" and a.is_contiguous(memory_format=form) and b.is_contiguous(memory_format=form):
        return sum_of_products(rows(a), rows(b)).sum()
    return (a * b).sum()
