"""EA module of MT-UNet: attention within and across windows (CSA), then external attention.

Source: Wang et al., "Mixed Transformer U-Net for Medical Image Segmentation", ICASSP 2022, in the form that the authors
of LSTM-SA publish as their baseline.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import ChannelNorm, at_least_float32
from nnunet_ext.networks.mt_unet.gaussian_attention import GaussianAxialAttention
from nnunet_ext.networks.mt_unet.window_attention import (
    WindowAttention,
    WindowPool,
    from_windows,
    head_width,
    pad_to_windows,
    to_windows,
)

_EXPANSION = 4
_MEMORY = 64
"""Units of the external attention's memory: keys and values learnt over all samples."""
_NORM_EPS = 1e-6
_SUM_EPS = 1e-9


class MixedAttention(nn.Module):
    """CSA: mixes attention within windows (l) and Gaussian axial attention on windows pooled to tokens (g).

        l = windows(pad(x));  g = axial(pool(l))
        x' = crop(W [up(g), l] + b), up bilinear with aligned corners

    Upsampling acts on positions and W on channels, so W is applied to g before upsampling, where there are fewer
    positions; only rounding differs.

    Args:
        channels: C.
        heads: Heads of the attention within windows; a divisor of C.
        window: Side of the windows, in tokens.

    Shape:
        (B, H, W, C) -> (B, H, W, C)

    Raises:
        ValueError: if `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.windows = WindowAttention(channels, heads)
        self.pool = WindowPool(channels, window**2)
        self.axial = GaussianAxialAttention(channels)
        self.squeeze = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        height, width, channels = x.shape[1:]
        windows = self.windows(to_windows(pad_to_windows(x, self.window), self.window))
        near = from_windows(windows, self.window)
        for_far, for_near = self.squeeze.weight.split(channels, 1)
        far = F.linear(self.axial(self.pool(windows)), for_far).movedim(-1, 1)
        far = F.interpolate(far, near.shape[1:3], mode="bilinear", align_corners=True).movedim(1, -1)
        near = F.linear(near[:, :height, :width], for_near, self.squeeze.bias)
        return near + far[:, :height, :width]


class ExternalAttention(nn.Module):
    """EXT: attention to a learnt memory of M = 64 units, in 4 x heads heads of width d = C / heads.

        a = softmax over tokens(W_0 q + b_0), q = a head's part of W_q t + b_q;  a' = a / (1e-9 + sum over M of a)
        t' = W_o [W_1 a' + b_1 of every head] + b_o

    Args:
        channels: C.
        heads: A quarter of the heads; a divisor of C.

    Shape:
        (B, L, C) -> (B, L, C)

    Raises:
        ValueError: if `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.width = head_width(channels, heads)
        self.query = nn.Linear(channels, _EXPANSION * channels)
        self.keys = nn.Linear(self.width, _MEMORY)
        self.values = nn.Linear(_MEMORY, self.width)
        self.out = nn.Linear(_EXPANSION * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query(tokens).unflatten(-1, (-1, self.width))  # (B, L, 4 heads, d)
        attention = at_least_float32(self.keys(query)).softmax(1)
        attention = attention / (_SUM_EPS + attention.sum(-1, keepdim=True))
        return self.out(self.values(attention).flatten(-2))


class EAModule(nn.Module):
    """y = x + CSA(norm1(x)); x' = y + EXT(norm2(y)).

    Args:
        channels: C.
        heads: Heads of both attentions; a divisor of C.
        window: Side of the windows, in tokens.

    Shape:
        (B, C, H, W) -> (B, C, H, W) in channels-last memory

    Raises:
        ValueError: if `heads` does not divide `channels`.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (ChannelNorm(channels, _NORM_EPS) for _ in range(2))
        self.mixed = MixedAttention(channels, heads, window)
        self.external = ExternalAttention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1).contiguous()  # (B, H, W, C), as everything below
        x = x + self.mixed(self.norm1(x))
        x = x + self.external(self.norm2(x).flatten(1, 2)).view(x.shape)
        return x.movedim(-1, 1)
