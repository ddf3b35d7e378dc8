"""ASEM (Axial Spatial Enhancement Module) of SASAN.

Source: Huang et al., "SASAN: Spectrum-Axial Spatial Approach Networks for Medical Image Segmentation".
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32
from nnunet_ext.blocks.dimension import spatial_dims
from nnunet_ext.networks.sasan.axial_attention import AxialAttention, attend_axes, default_heads


class ASEM(nn.Module):
    """Axial Spatial Enhancement Module on logits z.

    A(z) * (z * sigmoid(conv_1x1(z))), A(z) = 0.2 * sum of n*n axial self-attentions: one for every embedding axis
    (the n spatial axes) and every sequence axis (channels, then the other spatial axes).

    The constructor sets the bias of every output projection to 2 / (0.2 n^2), so that A is about 2 and the module is
    close to the identity. With the default initialisation A is about -0.03 +- 0.10, outputs shrink to a twentieth, and
    SGD makes no progress for the first 75 to 150 iterations.

    Args:
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        channels: K, the number of logits.
        size: P, in voxels.
        heads: Heads of every attention; None: the largest divisor of the embedding's length up to 16.

    Shape:
        (B, K, *P) -> (B, K, *P)
    """

    def __init__(self, conv_op: type[nn.Module], channels: int, size: Sequence[int], heads: int | None = None) -> None:
        super().__init__()
        n = spatial_dims(conv_op)
        self.scale = 0.2
        attentions = [
            AxialAttention(length, default_heads(length) if heads is None else heads)
            for length in size
            for _ in range(n)
        ]
        for attention in attentions:
            nn.init.constant_(attention.out.bias, 2 / (self.scale * n * n))
        self.attentions = nn.ModuleList(attentions)
        # nnU-Net skips layers under "seg_layers" when it loads pretrained weights, because their shapes depend on the
        # number of classes; so does this one's.
        self.seg_layers = nn.ModuleDict({"gate": conv_op(channels, 1, kernel_size=1)})

    def axial(self, z: Tensor) -> Tensor:
        """A(z), (B, K, *P)."""
        n = z.ndim - 2
        total: Tensor | None = None
        for a in range(n):
            maps = z.movedim(2 + a, -1)  # (B, K, other spatial axes, E)
            attentions = cast("list[AxialAttention]", list(self.attentions)[a * n : (a + 1) * n])
            mixed = attend_axes(maps, range(1, n + 1), attentions).movedim(-1, 2 + a)
            total = mixed if total is None else total + mixed
        if total is None:
            raise ValueError(f"expected (B, K, *P) with two or three spatial axes, got {tuple(z.shape)}")
        return self.scale * total

    def forward(self, z: Tensor) -> Tensor:
        # A grows with z and the product with its square, which limits logits in float16 to a few hundred.
        axial, gate, z = (at_least_float32(x) for x in (self.axial(z), self.seg_layers["gate"](z), z))
        return axial * (z * torch.sigmoid(gate))
