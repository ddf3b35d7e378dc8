"""SASAN: Spectrum-Axial Spatial Approach Network, in 2D and 3D.

Source: Huang et al., "SASAN: Spectrum-Axial Spatial Approach Networks for Medical Image Segmentation".

SASAN is a U-Net in which every encoder level is gated by the low band of the input image (FINE) and the logits go
through axial self-attention (ASEM). The authors' code requires one modality and a 96 x 96 x 96 patch; this
implementation supports any plan's stages, kernels, strides and patch, several modalities and deep supervision. Further
changes are described in `nnunet_ext.networks.sasan.fourier` and `nnunet_ext.networks.sasan.asem` (amplitude-preserving
low band, correct shifts, an initialisation that lets training start).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.conv import two_conv
from nnunet_ext.blocks.dimension import conv_transpose_op, max_pool_op
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.checks import check_input, check_widths
from nnunet_ext.networks.entry import at_any_precision, with_empty_batches
from nnunet_ext.networks.heads import check_heads, drop_unused_heads
from nnunet_ext.networks.sasan.adapting import TIED
from nnunet_ext.networks.sasan.asem import ASEM
from nnunet_ext.networks.sasan.fourier import FINE
from nnunet_ext.networks.sasan.low_band import image_spectrum
from nnunet_ext.networks.topology import PerStage, Topology


class SASAN(nn.Module):
    """SASAN with nnU-Net's constructor vocabulary.

    Level l: max-pooling by strides[l], two convolutions, x_l <- (r_l x_l + (1 - r_l) low_l) * x_l. The decoder
    upsamples by transposed convolutions and concatenates the gated skips; the full-resolution logits go through ASEM.

    Masks and attentions are tied to the patch, so an input of another size raises an error.

    Args:
        input_channels: M, the number of modalities.
        num_classes: K, the number of logits.
        patch_size: P in voxels, divisible by the product of the strides.
        n_stages: Number of levels, at least 2.
        features_per_stage: Channels C_l per level.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: Odd kernel sizes, per level and axis.
        strides: Pooling into each level, per level and axis; all 1 for the first.
        decoder_features: Width of the decoder's top level; None: C_0 (the authors: 32).
        heads: Heads of ASEM's attentions; None: the largest divisor of the axis length up to 16.
        deep_supervision: Whether to build and return 1x1 heads on the lower decoder levels.

    Shape:
        (B, M, *P) -> (B, K, *P); with deep supervision a list of S - 1 logits, full resolution first.

    Raises:
        ValueError: for sizes that do not fit together; see `Topology.create`.
    """

    tied_to_patch = TIED

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: int | Sequence[int],
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: PerStage,
        strides: PerStage,
        decoder_features: int | None = None,
        heads: int | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_widths(input_channels, num_classes)
        topology = Topology.create(
            conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
        )
        if max(topology.sizes[-1]) == 1:
            raise ValueError(
                f"`patch_size`={topology.patch_size} leaves one voxel at the lowest level, where instance norm has "
                "no variance; use fewer stages or a larger patch"
            )
        self.input_channels = input_channels
        self.patch_size = topology.patch_size
        self.encoder = _Encoder(input_channels, conv_op, topology)
        self.decoder = _Decoder(
            num_classes,
            conv_op=conv_op,
            topology=topology,
            top_features=decoder_features,
            heads=heads,
            deep_supervision=deep_supervision,
        )

    @with_empty_batches
    @at_any_precision
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_input(x, self.input_channels, self.patch_size)
        spectrum = image_spectrum(x)
        return self.decoder(self.encoder(cpu_channels_last(x), spectrum))


class _Encoder(nn.Module):
    def __init__(self, input_channels: int, conv_op: type[nn.Module], topology: Topology) -> None:
        super().__init__()
        self.pools, self.stages, self.fine = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width = input_channels
        for features, kernel, stride, size in zip(
            topology.features, topology.kernel_sizes, topology.strides, topology.sizes, strict=True
        ):
            self.pools.append(max_pool_op(conv_op)(stride, stride) if any(s > 1 for s in stride) else nn.Identity())
            self.stages.append(two_conv(conv_op, width, features, kernel))
            self.fine.append(FINE(features, size))
            width = features

    def forward(self, x: Tensor, spectrum: Tensor) -> list[Tensor]:
        skips = []
        for pool, stage, fine in zip(self.pools, self.stages, self.fine, strict=True):
            x = fine(stage(pool(x)), spectrum)
            skips.append(x)
        return skips


class _Decoder(nn.Module):
    """Levels are listed from full resolution down, so that head 0 is the same with and without deep supervision."""

    def __init__(
        self,
        num_classes: int,
        *,
        conv_op: type[nn.Module],
        topology: Topology,
        top_features: int | None,
        heads: int | None,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.upsampling, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        levels = len(topology.features) - 1
        widths = [topology.features[0] if top_features is None else top_features, *topology.features[1:]]
        for level in range(levels):
            below, skip, stride = widths[level + 1], topology.features[level], topology.strides[level + 1]
            up = below if level == 0 else max(1, below // 2)
            self.upsampling.append(conv_transpose_op(conv_op)(below, up, stride, stride))
            self.stages.append(two_conv(conv_op, skip + up, widths[level], topology.kernel_sizes[level]))
            if level == 0 or deep_supervision:
                self.seg_layers.append(conv_op(widths[level], num_classes, kernel_size=1))
        self.asem = ASEM(conv_op, num_classes, topology.patch_size, heads)
        self.register_load_state_dict_pre_hook(drop_unused_heads)

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        if self.deep_supervision:
            check_heads(self.seg_layers, len(self.stages))
        x, outputs = skips[-1], []
        for level in reversed(range(len(self.stages))):
            x = torch.cat((skips[level], cpu_channels_last(self.upsampling[level](x))), 1)
            x = self.stages[level](x)
            if level == 0:
                outputs.append(self.asem(self.seg_layers[0](x)))
            elif self.deep_supervision:
                outputs.append(self.seg_layers[level](x))
        return outputs[::-1] if self.deep_supervision else outputs[0]
