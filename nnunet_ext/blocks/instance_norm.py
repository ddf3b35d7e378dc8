"""Instance norm followed by leaky ReLU, as one step.

On the CPU, PyTorch copies a channels-last map to the contiguous layout before instance norm and back. The operator used
there works on channels-last maps directly. Without gradients, and if nothing else holds the map, it works in the map's
memory, because page faults of a fresh full-resolution map cost more than the arithmetic. Elsewhere PyTorch's own
functions are used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.layout import has_rows, rows
from nnunet_ext.ops.instance_norm import instance_norm, instance_norm_
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.utils.torch_private import in_function_transform


def instance_norm_leaky_relu_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float
) -> Tensor:
    """Reference of `instance_norm_leaky_relu`: PyTorch's two functions."""
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias, eps=eps), slope)


def instance_norm_leaky_relu(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float, *, overwrite: bool = False
) -> Tensor:
    """LeakyReLU(weight * (x - mean) / sqrt(var + eps) + bias), mean and variance over space per sample and channel.

    Args:
        x: Map to normalise.
        weight: Scale per channel; None, with no bias either: 1.
        bias: Shift per channel.
        eps: Added to the (biased) variance.
        slope: Slope of the leaky ReLU for negative values, above 0; 1 leaves the activation out.
        overwrite: Whether the memory of `x` may be overwritten where no gradient is needed: only for a map that
            nothing else holds.

    Shape:
        x and result (B, C, *P); weight and bias (C,).
    """
    if x.numel() == 0:  # PyTorch's function refuses an empty batch
        return x.clone()
    if not _operator_applies(x, weight, bias):
        y = F.instance_norm(x, weight=weight, bias=bias, eps=eps)
        return y if slope == 1 else F.leaky_relu_(y, slope)
    if overwrite and not torch.is_grad_enabled() and not x.requires_grad:
        instance_norm_(rows(x), weight, bias, eps, slope)
        return x
    y = instance_norm(rows(x), weight, bias, eps, slope)[0]
    return y.unflatten(1, x.shape[2:]).movedim(-1, 1)


def _operator_applies(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    return (
        has_rows(x)
        and all(t is None or t.dtype == x.dtype for t in (weight, bias))
        and x.dtype in (torch.float32, torch.float64)
        and not is_portable()
        and not torch.compiler.is_compiling()
        and not in_function_transform()
    )


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

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        return instance_norm_leaky_relu(x, self.weight, self.bias, self.eps, self.slope, overwrite=overwrite)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, slope={self.slope}, affine={self.weight is not None}"
