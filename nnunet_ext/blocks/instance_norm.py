"""Instance norm followed by leaky ReLU, as one step.

On the CPU, PyTorch copies a channels-last map to the contiguous layout before instance norm and back, and every
fresh map of a full-resolution level costs more in page faults than the arithmetic. The fast path here therefore
works on channels-last maps as they are and in the memory of the convolution's output, by the C extension where there
is one. Elsewhere PyTorch's own functions are used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunet_ext.blocks.layout import channels_last, rows, sum_of_products
from nnunet_ext.ops import instance_norm as native


def instance_norm_leaky_relu_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float
) -> Tensor:
    """Plain form of `instance_norm_leaky_relu`: PyTorch's two functions."""
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias, eps=eps), slope)


def instance_norm_leaky_relu(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float) -> Tensor:
    """LeakyReLU(weight * (x - mean) / sqrt(var + eps) + bias), mean and variance over space per sample and channel.

    The memory of `x` may be overwritten: call it on a fresh result that nothing else needs, as a convolution's is.

    Args:
        x: Map to normalise.
        weight: Scale per channel; None, with no bias either: 1.
        bias: Shift per channel.
        eps: Added to the (biased) variance.
        slope: Slope of the leaky ReLU for negative values, above 0; 1 leaves the activation out.

    Shape:
        x and result (B, C, *P); weight and bias (C,).
    """
    if not _fast_path_applies(x, weight, bias):
        return _leaky_relu_(F.instance_norm(x, weight=weight, bias=bias, eps=eps), slope)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        if weight is None or bias is None:
            return _InPlace.apply(x, eps, slope)
        library = native.native_norm(x)
        if library is not None:
            return _Native.apply(library, x, weight, bias, eps, slope)
        return _InstanceNormLeakyReLU.apply(x, weight, bias, eps, slope)[0]
    _forward_(x, weight, bias, eps, slope)
    return x


def _forward_(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float) -> Tensor:
    """In place; returns the scale (B, 1, C)."""
    library, voxels = native.native_norm(x), rows(x)
    if library is not None:
        weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
        return native.forward(library, voxels, weight, bias, eps, slope, voxels)[1][:, None]
    normalised, scale = _normalise_(voxels, eps)
    if weight is not None and bias is not None:
        normalised.mul_(weight).add_(bias)
    _leaky_relu_(x, slope)
    return scale


def _leaky_relu_(x: Tensor, slope: float) -> Tensor:
    return x if slope == 1 else F.leaky_relu_(x, slope)


def _fast_path_applies(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    return (
        x.device.type == "cpu"
        and all(t is None or t.dtype == x.dtype for t in (weight, bias))
        and x.dtype in (torch.float32, torch.float64)
        and x.is_contiguous(memory_format=channels_last(x.ndim))
        and not (x.is_leaf and x.requires_grad)
        and not torch.compiler.is_compiling()
    )


def _normalise_(voxels: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalises (B, voxels, C) in place; returns it and the scale 1 / sqrt(var + eps), (B, 1, C)."""
    voxels.sub_(voxels.mean(1, keepdim=True))
    scale = (sum_of_products(voxels, voxels) / voxels.shape[1] + eps).rsqrt()
    return voxels.mul_(scale), scale


class _InPlace(torch.autograd.Function):
    """Without scale and shift the result tells the normalised map, as the leaky ReLU has an inverse: it takes the
    memory of the input, and nothing else is kept."""

    @staticmethod
    def forward(ctx, x, eps, slope):
        scale = _forward_(x, None, None, eps, slope)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, scale)
        ctx.slope = slope
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        y, scale = ctx.saved_tensors
        grad_y = grads[0].contiguous(memory_format=channels_last(y.ndim))
        library = native.native_norm(y)
        if library is not None:
            grad = torch.empty_like(grad_y)
            per_channel = scale[:, 0]
            # Of the mean nothing depends on here.
            native.backward(library, rows(grad_y), rows(y), None, None, per_channel, per_channel, ctx.slope, rows(grad))
            return grad, None, None
        grad = torch.ops.aten.leaky_relu_backward(grad_y, y, ctx.slope, True)
        _differentiate_(rows(grad), rows(F.leaky_relu(y, 1 / ctx.slope)), scale)
        return grad, None, None


class _Native(torch.autograd.Function):
    """By the C extension; keeps the input."""

    @staticmethod
    def forward(ctx, library, x, weight, bias, eps, slope):
        out = torch.empty_like(x)
        weight, bias = weight.contiguous(), bias.contiguous()
        moments = native.forward(library, rows(x), weight, bias, eps, slope, rows(out))
        ctx.save_for_backward(x, weight, bias, *moments)
        ctx.library, ctx.slope = library, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, weight, bias, mean, scale = ctx.saved_tensors
        grad_y = grads[0].contiguous(memory_format=channels_last(x.ndim))
        grad = torch.empty_like(grad_y)
        of_bias, of_weight = native.backward(
            ctx.library, rows(grad_y), rows(x), weight, bias, mean, scale, ctx.slope, rows(grad)
        )
        return None, grad, of_weight, of_bias, None, None


class _InstanceNormLeakyReLU(torch.autograd.Function):
    """By PyTorch; keeps the normalised map (in the memory of the input) and the output, which exist anyway."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, slope):
        normalised, scale = _normalise_(rows(x), eps)
        out = torch.empty_like(x, memory_format=channels_last(x.ndim))
        torch.addcmul(bias, normalised, weight, out=rows(out))
        _leaky_relu_(out, slope)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, out, weight, scale)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        return out, x

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        if grads[0] is None:
            return (None,) * 5
        x, out, weight, scale = ctx.saved_tensors
        grad_out = grads[0].contiguous(memory_format=channels_last(x.ndim))
        # Of the output only the sign counts.
        grad = torch.ops.aten.leaky_relu_backward(grad_out, out, ctx.slope, True)
        sum_grad, sum_product = _differentiate_(rows(grad), rows(x), scale * weight)
        return grad, sum_product.sum((0, 1)), sum_grad.sum((0, 1)), None, None


def _differentiate_(g: Tensor, normalised: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """scale * (g - mean of g - normalised * mean of g * normalised) in place; returns both sums (B, 1, C)."""
    sum_grad = g.sum(1, keepdim=True)
    sum_product = sum_of_products(g, normalised)
    voxels = g.shape[1]
    g.sub_(sum_grad / voxels).addcmul_(normalised, sum_product, value=-1.0 / voxels).mul_(scale)
    return sum_grad, sum_product


class InstanceNormLeakyReLU(nn.Module):
    """Instance norm and leaky ReLU; see `instance_norm_leaky_relu`.

    Args:
        channels: C.
        eps: Added to the variance.
        slope: Slope of the leaky ReLU; 1 leaves the activation out.
        affine: Whether there are a learnt scale and shift.
    """

    def __init__(self, channels: int, eps: float = 1e-5, slope: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(channels)) if affine else None
        self.bias = nn.Parameter(torch.empty(channels)) if affine else None
        self.eps = eps
        self.slope = slope
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1 and shift 0."""
        if self.weight is not None and self.bias is not None:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm_leaky_relu(x, self.weight, self.bias, self.eps, self.slope)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, slope={self.slope}, affine={self.weight is not None}"
