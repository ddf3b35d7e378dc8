"""Attention within the windows of a map, and pooling of each window to a token.

Source: Wang et al., "Mixed Transformer U-Net for Medical Image Segmentation", ICASSP 2022, in the form that the authors
of LSTM-SA publish as their baseline.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32


def head_width(channels: int, heads: int) -> int:
    """Channels of one head.

    Raises:
        ValueError: if `heads` does not divide `channels`.
    """
    if heads < 1 or channels % heads:
        divisors = [h for h in range(1, channels + 1) if channels % h == 0]
        raise ValueError(f"`heads`={heads} must divide the width {channels}; its divisors: {divisors}")
    return channels // heads


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Pads a map at its end to multiples of the window.

    The padding is zero, except for the corner block beyond both the last row and the last column, which repeats the
    map's last rows and columns (or its first ones if the map has fewer, a size that the authors' code rejects).

    Shape:
        (B, H, W, C) -> (B, H', W', C)
    """
    height, width = x.shape[1:3]
    below, right = -height % window, -width % window
    if not below and not right:
        return x
    padded = F.pad(x, (0, 0, 0, right, 0, below))
    if below and right:
        rows, columns = (
            torch.arange(size - pad, size, device=x.device).clamp_min(0)
            for size, pad in ((height, below), (width, right))
        )
        padded[:, height:, width:] = x[:, rows[:, None], columns]
    return padded


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), with sides that are multiples of the window -> (B, H / window, W / window, window^2, C)."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return x.transpose(2, 3).flatten(3, 4)


def from_windows(windows: Tensor, window: int) -> Tensor:
    """Inverse of `to_windows`."""
    x = windows.unflatten(3, (window, window)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows: softmax(q k^T (C / heads)^-0.5) v, then the output projection.

    Args:
        channels: C.
        heads: Divisor of C.

    Shape:
        windows (B, H, W, N, C) of N tokens -> (B, H, W, N, C)

    Raises:
        ValueError: if `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        head_width(channels, heads)
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, windows: Tensor) -> Tensor:
        grid = windows.shape[1:3]
        qkv = self.qkv(windows.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))  # (B, windows, N, 3, heads, C / heads)
        # Windows are merged with the heads, not the batch: fused kernels put the batch on a grid axis of at most 65535
        # blocks.
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(q, k, v)  # scores and softmax in float32 even under autocast
        mixed = mixed.unflatten(1, (-1, self.heads)).transpose(2, 3).flatten(3)
        return self.out(mixed).unflatten(1, grid)


class WindowPool(nn.Module):
    """One token per window: sum_n w_n t_n, w = softmax(W mean_n(t_n) + b).

    Args:
        channels: C.
        tokens: N, the tokens of a window.

    Shape:
        (B, H, W, N, C) -> (B, H, W, C)
    """

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(channels, tokens)

    def forward(self, windows: Tensor) -> Tensor:
        weights = at_least_float32(self.weigh(windows.mean(-2))).softmax(-1).to(windows.dtype)
        return (weights[..., None, :] @ windows).squeeze(-2)
