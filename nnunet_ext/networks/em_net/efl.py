"""EFL layer (efficient frequency learning) of EM-Net: a learnable filter on the spectrum of a feature map.

Source: Chang, Zeng, Huang, Ni, "EM-Net: Efficient Channel and Frequency Learning with Mamba for 3D Medical Image
Segmentation", MICCAI 2024 (arXiv 2409.17675).

The authors' code differs from the paper in two ways:
* It leaves the volume with its last two axes exchanged after each layer, which requires them to be equal. Layers come
  in pairs; here the second layer of a pair works on the exchanged axes and then restores their order, which is the
  authors' function for equal axes and is defined for all sizes.
* It transforms the memory of the channels-last map as if the channels came first, so that its FFT does not run over
  space. `layout="authors"` reproduces this.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import ChannelMLP, ChannelNorm, at_least_float32
from nnunet_ext.blocks.spectral_filter import filter_spectrum
from nnunet_ext.ops.portable import without_autocast

LAYOUTS = ("spatial", "authors")


def check_layout(layout: str) -> None:
    """Raises a ValueError that lists the known layouts, for an unknown one."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown `efl_layout` {layout!r}; known: {', '.join(LAYOUTS)}")


class EFL(nn.Module):
    """x' = x + mlp(norm2(f)), f = irfftn(rfftn(norm1(x)) * W), orthonormal transforms in at least float32.

    Args:
        channels: C.
        size: P in voxels, to which W is tied.
        exchanged: Whether to work on the volume with its last two axes exchanged (and to exchange them back).
        layout: ``"spatial"``: the transform runs over space, as in the paper; ``"authors"``: it runs over the map's
            memory (B, *P, C) read as (B, C, *P), as in the authors' code.

    Shape:
        (B, C, *P) -> (B, C, *P) in channels-last memory

    Raises:
        ValueError: for an unknown layout.
    """

    def __init__(self, channels: int, size: Sequence[int], exchanged: bool = False, layout: str = "spatial") -> None:
        super().__init__()
        check_layout(layout)
        self.exchanged, self.spatial = exchanged, layout == "spatial"
        self.size = (*size[:-2], size[-1], size[-2]) if exchanged else tuple(size)
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.mlp = ChannelMLP(channels, max(1, channels // 2))
        # Real and imaginary part in the last axis: (C, h, w, d // 2 + 1, 2), in the memory layout of the spectrum.
        half = (*self.size[:-1], self.size[-1] // 2 + 1)
        if self.spatial:
            weight = torch.randn(*half, channels, 2).movedim(-2, 0)
        else:
            weight = torch.randn(channels, *half, 2)
        self.weight = nn.Parameter(0.02 * weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)  # (B, *P, C), as everything below
        normalised = self._exchange(self.norm1(x))
        with without_autocast(x.device.type):
            filtered = self._filter_space(normalised) if self.spatial else self._filter_memory(normalised)
        changed = self._exchange(self.mlp(self.norm2(filtered)))
        return (x + changed).movedim(-1, 1)

    def _exchange(self, x: Tensor) -> Tensor:
        return x.transpose(-2, -3) if self.exchanged else x

    def _filter_space(self, x: Tensor) -> Tensor:
        weight = at_least_float32(self.weight).movedim(0, -2)
        return filter_spectrum(x, weight, tuple(range(1, x.ndim - 1)))

    def _filter_memory(self, x: Tensor) -> Tensor:
        misread = x.contiguous().view(x.shape[0], x.shape[-1], *self.size)
        return filter_spectrum(misread, at_least_float32(self.weight), tuple(range(2, x.ndim))).movedim(1, -1)

    def extra_repr(self) -> str:
        return f"size={self.size}, exchanged={self.exchanged}, layout={'spatial' if self.spatial else 'authors'}"
