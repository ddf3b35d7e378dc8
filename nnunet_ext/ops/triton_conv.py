"""Causal depthwise convolution over time on the GPU in Triton; see `nnunet_ext.ops.causal_conv1d`.

    r_t = bias + sum_j w_j x_{t-k+1+j};  y_t = act(r_t);  g_t = act'(r_t) dL/dy_t
    dL/dx_t = sum_j w_j g_{t+k-1-j};  dL/dw_j = sum_t g_t x_{t-k+1+j};  dL/dbias = sum_t g_t

One pass over the sequence in each direction, in any memory layout, without copies; fastest with a channel stride of 1.
A program owns `TILE` channels of `CHUNK` steps and reads them `STEPS` at a time, so that the k shifted tiles come from
the cache. The backward pass computes r again. Its sums over the steps of a program are added up by PyTorch, without
atomics: equal inputs give equal gradients. A reversed convolution is a pointer to the last position and a negative
stride.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from nnunet_ext.ops.triton_conv_kernels import convolve, convolve_backward

TILE = 32
STEPS = 16
CHUNK = 256
LAUNCH: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": True}


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """y, laid out as `empty_like(x)`, in the type of x.

    Args:
        x: Sequence (b, d, l) in up to 32 bits.
        weight: Filters (d, k) in float32.
        bias: Values (d,) in float32.
        silu: Whether SiLU follows.
        reverse: Whether time runs from the last position to the first.
    """
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        convolve[_grid(x)](
            *(_in_time(x, reverse), _in_time(y, reverse), weight.contiguous()),
            None if bias is None else bias.contiguous(),
            *_sizes(x),
            **_constants(weight, silu),
        )
    return y


def backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, in its type and laid out as `empty_like(x)`, and of weight and bias in float32."""
    width = weight.shape[1]
    grad_x = torch.empty_like(x)
    sums = torch.empty(x.shape[0], triton.cdiv(x.shape[2], CHUNK), width + 1, x.shape[1], device=x.device)
    with torch.cuda.device_of(x):
        convolve_backward[_grid(x)](
            *(_in_time(i, reverse) for i in (x, grad_y, grad_x)),
            *(sums, weight.contiguous(), None if bias is None else bias.contiguous()),
            *_sizes(x),
            **_constants(weight, silu),
        )
    total = sums.sum((0, 1))
    return grad_x, total[:-1].t().contiguous(), total[-1].clone()


def _grid(x: Tensor) -> tuple[int]:
    b, d, length = x.shape
    return (b * triton.cdiv(length, CHUNK) * triton.cdiv(d, TILE),)


def _sizes(x: Tensor) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


def _constants(weight: Tensor, silu: bool) -> dict[str, Any]:
    return {"WIDTH": weight.shape[1], "SILU": silu, "TILE": TILE, "STEPS": STEPS, "CHUNK": CHUNK} | LAUNCH


def _in_time(x: Tensor, reverse: bool) -> tuple[Tensor, int, int, int]:
    """Pointer to the first step in the order of reading, and the strides of batch, channel and step."""
    start, sign = (x[..., -1:], -1) if reverse else (x, 1)
    return start, x.stride(0), x.stride(1), sign * x.stride(2)
