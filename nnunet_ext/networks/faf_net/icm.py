"""ICM of FAF-Net: cross attention from a prototype of the support to the query's features.

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation).
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32
from nnunet_ext.networks.faf_net.adaptive_filter import AFF


class ICM(nn.Module):
    """Attention of prototypes to every position l of a feature map, filtered by AFF.

        Q = fc_q(p),  K = fc_k(F),  V = fc_v(F), each m heads of width C
        A = Q K^T / sqrt(C);  a = softmax_l(AFF(A));  ICM(p, F) = fc_o(sum_l a_l V_l)

    K and V are never computed: Q K^T = (Q W_k) F^T + Q b_k, and because the a_l sum to one, sum_l a_l V_l equals
    W_v (sum_l a_l F_l) + b_v. This needs products per prototype instead of two C x mC products per position.
    `icm_reference` is the naive reference implementation. Computed in at least float32, except for AFF's convolutions.

    Args:
        channels: C.
        heads: m.
        grid: (h, w) of the features for which AFF's filters are made.

    Shape:
        prototypes (B, N, C) and features (B, C, h', w') -> (B, N, C)
    """

    def __init__(self, channels: int, heads: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.fc_q, self.fc_k, self.fc_v = (nn.Linear(channels, heads * channels) for _ in range(3))
        self.fc_o = nn.Linear(heads * channels, channels)
        self.aff = AFF(channels, heads, grid)

    def forward(self, prototypes: Tensor, features: Tensor) -> Tensor:
        amplitude, phase = self.aff.filters(features)
        size, heads = features.shape[-2:], (self.heads, self.channels)
        with torch.autocast(features.device.type, enabled=False):
            positions = at_least_float32(features).flatten(2)  # (B, C, L)
            q = self.fc_q(at_least_float32(prototypes)).unflatten(-1, heads)  # (B, N, m, C)
            weighted = torch.einsum("bnmd,mdc->bnmc", q, self.fc_k.weight.unflatten(0, heads))
            shift = (q * self.fc_k.bias.unflatten(0, heads)).sum(-1, keepdim=True)
            # One product for all prototypes of an image: broadcast ones would copy the features for each of them.
            products = (weighted.flatten(1, 2) @ positions).unflatten(1, (-1, self.heads))
            scores = (products + shift) / sqrt(self.channels)  # (B, N, m, L)
            filtered = self.aff(scores.unflatten(-1, size), amplitude[:, None], phase[:, None])
            attention = filtered.flatten(-2).softmax(-1)
            read = attention.flatten(1, 2) @ positions.transpose(-1, -2)  # (B, N m, C)
            weight = self.fc_v.weight.unflatten(0, heads)
            values = torch.einsum("bnmc,mdc->bnmd", read.unflatten(1, (-1, self.heads)), weight)
            return self.fc_o(values.flatten(-2) + self.fc_v.bias)


def icm_reference(icm: ICM, prototypes: Tensor, features: Tensor) -> Tensor:
    """Naive reference implementation of `ICM`: keys and values at every position, one prototype at a time."""
    heads = (icm.heads, icm.channels)
    tokens = features.flatten(2).transpose(1, 2)
    k, v = (fc(tokens).unflatten(-1, heads).transpose(1, 2) for fc in (icm.fc_k, icm.fc_v))  # (B, m, L, C)
    filters = icm.aff.filters(features)
    results = []
    for prototype in prototypes.unbind(1):
        q = icm.fc_q(prototype).unflatten(-1, heads)[:, :, None]  # (B, m, 1, C)
        scores = (q @ k.transpose(-1, -2) / sqrt(icm.channels))[:, :, 0]
        attention = icm.aff(scores.unflatten(-1, features.shape[-2:]), *filters).flatten(-2).softmax(-1)
        results.append(icm.fc_o((attention[:, :, None] @ v)[:, :, 0].flatten(1)))
    return torch.stack(results, 1)
