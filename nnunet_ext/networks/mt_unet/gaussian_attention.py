"""Axial self-attention whose scores decrease with the squared distance, used on MT-UNet's windows.

Source: Wang et al., "Mixed Transformer U-Net for Medical Image Segmentation", ICASSP 2022, in the form that the authors
of LSTM-SA publish as their baseline, which visits every position in a loop.
"""

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32


def gaussian_attention_reference(q: Tensor, k: Tensor, v: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
    """Naive reference implementation of `gaussian_attention`: one position at a time, with the bias b that cancels."""
    _, height, width, _ = q.shape
    rows, columns = (torch.arange(n, dtype=q.dtype, device=q.device) for n in (height, width))
    out = []
    for r in range(height):
        for c in range(width):
            a_x = (q[:, r, c, None] * k[:, r]).sum(-1) - shift * (columns - c) ** 2 - bias
            a_y = (q[:, r, c, None] * k[:, :, c]).sum(-1) - shift * (rows - r) ** 2 - bias
            along_row = (a_x.softmax(-1)[..., None] * v[:, r]).sum(1)
            along_column = (a_y.softmax(-1)[..., None] * v[:, :, c]).sum(1)
            out.append(along_row + along_column)
    return torch.stack(out, 1).unflatten(1, (height, width))


def gaussian_attention(q: Tensor, k: Tensor, v: Tensor, shift: Tensor) -> Tensor:
    """Single-head attention along the row and along the column of every position, summed.

        a_x(r, c, w) = q(r, c) . k(r, w);  a_y(r, c, h) = q(r, c) . k(h, c)
        out(r, c) = sum_w softmax_w(a_x - s (w - c)^2 - b) v(r, w) + sum_h softmax_h(a_y - s (h - r)^2 - b) v(h, c)

    The scores have no scale. b is the same for all positions of a softmax, so it cancels and is left out.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        shift: s, one number.

    Shape:
        q, k, v and the result (B, H, W, C).
    """
    along_rows = _attend(q, k, v, shift)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return along_rows + _attend(q, k, v, shift).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, shift: Tensor) -> Tensor:
    position = torch.arange(q.shape[2], dtype=q.dtype, device=q.device)
    squared_distance = (position[:, None] - position).square()
    scores = q @ k.transpose(-1, -2) - shift * squared_distance
    return scores.softmax(-1) @ v


class GaussianAxialAttention(nn.Module):
    """`gaussian_attention` with q, k, v = W t + b', in at least float32.

    The authors' module has a bias b, which cancels, and an output projection, which is never applied. Both are in their
    checkpoints and parameter counts. Here they do not require gradients, because distributed training expects a
    gradient for every parameter that does.

    Args:
        channels: C.

    Shape:
        (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.shift = nn.Parameter(torch.randn(1).abs())
        self.bias = nn.Parameter(-torch.randn(1).abs(), requires_grad=False)
        self.out = nn.Linear(channels, channels).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = at_least_float32(self.qkv(x)).chunk(3, -1)
        # The scores have no scale, so sums over C exceed float16's range and bfloat16's precision.
        with torch.autocast(x.device.type, enabled=False):
            return gaussian_attention(q, k, v, at_least_float32(self.shift))
