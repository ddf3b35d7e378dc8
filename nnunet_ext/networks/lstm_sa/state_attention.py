"""Channel attention whose query, key and value are LSTM states (SALSTM) or are gated by them (LSTMSA).

Source: Ji, Ye, Ma, "Sparse Coding Inspired LSTM and Self-Attention Integration for Medical Image Segmentation", IEEE
TIP 2024.
"""

import torch
from torch import Tensor, nn

from nnunet_ext.networks.lstm_sa.conv_lstm import States


class StateAttention(nn.Module):
    """softmax(Q K^T / sqrt(s)) V over channels, Q = (c + f) / 2, K = (g + h) / 2, V = h; (C, HW) matrices.

    Gated: Q, K and V are multiplied element-wise by three learnt projections of h, whose biases start at 1, as if there
    were no gates. (With PyTorch's default, all three would start a tenth as large.) Computed in at least float32,
    because products over all voxels exceed the range of float16.

    Args:
        channels: C.
        size: s, the authors' attention size: the number of voxels of a slice.
        gated: Whether the states gate projections (LSTMSA) or are used directly (SALSTM).

    Shape:
        states (B, n, H, W, C) -> V (B, n, HW, C) and the attention's matrix (B, n, C, C); see `project`
    """

    def __init__(self, channels: int, size: int, gated: bool) -> None:
        super().__init__()
        self.scale = size**-0.5
        self.gated = gated
        if gated:
            self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
            for projection in (self.query, self.key, self.value):
                nn.init.ones_(projection.bias)

    def forward(self, states: States) -> tuple[Tensor, Tensor]:
        with torch.autocast(states.h.device.type, enabled=False):
            dtype = torch.promote_types(states.h.dtype, torch.float32)
            c, f, g, h = (x.flatten(2, 3).to(dtype) for x in states)  # (B, n, HW, C)
            q, k, v = c + f, g + h, h  # twice Q and K, without a pass over their maps for the factors
            if self.gated:
                q, k, v = q * self.query(h), k * self.key(h), v * self.value(h)
            return v, torch.softmax(q.transpose(-1, -2) @ k * (0.25 * self.scale), -1)

    def extra_repr(self) -> str:
        return f"scale={self.scale:.3g}, gated={self.gated}"


def project(values: Tensor, attention: Tensor, projection: Tensor) -> Tensor:
    """A 1x1 convolution of attention V. The two matrices are multiplied first, because K is smaller than C.

    Shape:
        V (B, n, HW, C), attention (B, n, C, C), projection (K, C) -> (B, n, HW, K)
    """
    with torch.autocast(values.device.type, enabled=False):
        return values @ (projection.to(values.dtype) @ attention).transpose(-1, -2)
