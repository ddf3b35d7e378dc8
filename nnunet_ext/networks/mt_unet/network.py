"""MT-UNet: Mixed Transformer U-Net, in 2D.

Source: Wang et al., "Mixed Transformer U-Net for Medical Image Segmentation", ICASSP 2022, in the form that Ji, Ye, Ma,
"Sparse Coding Inspired LSTM and Self-Attention Integration for Medical Image Segmentation", IEEE TIP 2024, publish as
their baseline: the backbone of their LSTM-SA checkpoints.

MT-UNet has a convolutional stem of three levels with max-pooling, three levels of EA modules (attention within windows,
across windows and to a learnt memory), and a symmetric decoder. The authors' code requires a square image of 224 pixels
and repeats one channel to three; this implementation supports any size divisible by 32, any number of channels and any
widths. The Gaussian axial attention is computed for all positions at once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.checks import check_input, check_widths
from nnunet_ext.networks.entry import at_any_precision, with_empty_batches
from nnunet_ext.networks.mt_unet.double_conv import ConvBatchNorm, DoubleConv, Pointwise
from nnunet_ext.networks.mt_unet.mixed_attention import EAModule
from nnunet_ext.networks.mt_unet.position_embedding import TIED, PositionEmbedding
from nnunet_ext.networks.topology import PerStage, Topology

STEM_LEVELS = 3
LEVELS = 6
EA_MODULES = 2
"""EA modules per level below the stem, in the encoder and in the decoder."""
_WIDTHS = (64, 128, 256, 256, 512, 1024)
_STRIDES = (1, 2, 2, 2, 2, 2)
_KERNEL = 3
_COLOURS = 3
"""Number of channels to which a single one is repeated: the authors' first convolution is for colour images."""


class MTUNet(nn.Module):
    """MT-UNet with nnU-Net's constructor vocabulary.

    Levels 0 to 2 are the stem; each has two convolutions and a residual one, with max-pooling in between. Level 3
    starts with max-pooling, a 1x1 convolution and the position embedding, levels 4 and 5 with 2x2 convolutions of
    stride 2; each of them has two EA modules. The decoder upsamples by 2x2 transposed convolutions and concatenates the
    skips. At level 4 the result is reduced to the level's width, at level 3 it keeps both widths, each followed by two
    EA modules; the stem's levels have two convolutions again.

    The position embedding is tied to the patch, so an input of another size raises an error. The architecture is fixed:
    nnU-Net's arguments for it are accepted, but each has only one valid value.

    Args:
        input_channels: M, the number of modalities; a single one is repeated to 3.
        num_classes: K, the number of logits.
        patch_size: P in pixels, divisible by 32. A patch of 32 x 32 leaves one token at the lowest level, where the
            batch norm needs batches of two or more in training.
        n_stages: Number of levels, always 6.
        features_per_stage: Width of each of the three stem levels, of the two encoder levels, and of the bottleneck.
        conv_op: ``torch.nn.Conv2d``.
        kernel_sizes: Always 3, on all levels and axes.
        strides: Always 1 for the first level and 2 for the others.
        heads: Heads of the attention within windows, a quarter of those of the external attention; a divisor of the
            widths of levels 3, 4 and 5.
        window: Side of the windows, in tokens.
        deep_supervision: Whether to return a list. There is a single output, at full resolution.

    Shape:
        (B, M, *P) -> (B, K, *P); with deep supervision, a list with this one entry.

    Raises:
        ValueError: for an architecture other than MT-UNet's, and for sizes that do not fit together; see
            `Topology.create`.
    """

    tied_to_patch = TIED

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: int | Sequence[int],
        n_stages: int = LEVELS,
        features_per_stage: int | Sequence[int] = _WIDTHS,
        conv_op: type[nn.Module] = nn.Conv2d,
        kernel_sizes: PerStage = _KERNEL,
        strides: PerStage = _STRIDES,
        heads: int = 8,
        window: int = 4,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_widths(input_channels, num_classes)
        if conv_op is not nn.Conv2d:
            raise ValueError(
                f"`conv_op`={conv_op!r} is not supported: MT-UNet is 2D only (LSTM-SA applies it slice by slice to "
                "volumes); use torch.nn.Conv2d"
            )
        if n_stages != LEVELS:
            raise ValueError(f"`n_stages`={n_stages} must be {LEVELS}: three levels of the stem and three of attention")
        if window < 1:
            raise ValueError(f"`window`={window} must be at least 1 token")
        topology = Topology.create(
            conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
        )
        if any(k != _KERNEL for kernel in topology.kernel_sizes for k in kernel):
            raise ValueError(f"`kernel_sizes`={topology.kernel_sizes} must be {_KERNEL} throughout: MT-UNet fixes them")
        if topology.strides != tuple((s, s) for s in _STRIDES):
            raise ValueError(f"`strides`={topology.strides} must be {_STRIDES} on both axes: MT-UNet fixes them")
        self.input_channels = input_channels
        self.patch_size = topology.patch_size
        self.encoder = _Encoder(_COLOURS if input_channels == 1 else input_channels, topology, heads, window)
        self.decoder = _Decoder(num_classes, topology, heads, window, deep_supervision)

    @with_empty_batches
    @at_any_precision
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_input(x, self.input_channels, self.patch_size)
        if self.input_channels == 1:
            x = x.expand(-1, _COLOURS, -1, -1)
        return self.decoder(self.encoder(cpu_channels_last(x)))


class _Encoder(nn.Module):
    """Lists have one entry per level; `downsampling` leads into the level."""

    def __init__(self, input_channels: int, topology: Topology, heads: int, window: int) -> None:
        super().__init__()
        self.downsampling, self.stages = nn.ModuleList(), nn.ModuleList()
        width = input_channels
        for level, features in enumerate(topology.features):
            self.downsampling.append(_down(level, width, features, topology))
            self.stages.append(
                DoubleConv(width, features) if level < STEM_LEVELS else _ea_modules(features, heads, window)
            )
            width = features

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for down, stage in zip(self.downsampling, self.stages, strict=True):
            x = stage(down(x))
            skips.append(x)
        return skips


class _Decoder(nn.Module):
    """Levels are listed from full resolution down."""

    def __init__(self, num_classes: int, topology: Topology, heads: int, window: int, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.upsampling, self.stages = nn.ModuleList(), nn.ModuleList()
        *levels, below = topology.features
        widths = [2 * f if level == STEM_LEVELS else f for level, f in enumerate(levels)] + [below]
        for level, features in enumerate(levels):
            self.upsampling.append(nn.ConvTranspose2d(widths[level + 1], features, kernel_size=2, stride=2))
            if level < STEM_LEVELS:
                stage: nn.Module = DoubleConv(2 * features, features)
            else:
                stage = _ea_modules(widths[level], heads, window)
                if widths[level] != 2 * features:
                    stage.insert(0, Pointwise(2 * features, features))
            self.stages.append(stage)
        self.seg_layers = nn.ModuleList([Pointwise(topology.features[0], num_classes)])

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        x = skips[-1]
        for level in reversed(range(len(self.stages))):
            up, skip = cpu_channels_last(self.upsampling[level](x)), skips[level]
            x = self.stages[level](torch.cat((skip, up) if level < STEM_LEVELS else (up, skip), 1))
        logits = self.seg_layers[0](x)
        return [logits] if self.deep_supervision else logits


def _down(level: int, width: int, features: int, topology: Topology) -> nn.Module:
    if level == 0:
        return nn.Identity()
    if level < STEM_LEVELS:
        return nn.MaxPool2d(2)
    if level > STEM_LEVELS:
        return ConvBatchNorm(width, features, kernel_size=2, stride=2)
    tokens = ConvBatchNorm(width, features, kernel_size=1)
    return nn.Sequential(nn.MaxPool2d(2), tokens, PositionEmbedding(features, topology.sizes[level]))


def _ea_modules(channels: int, heads: int, window: int) -> nn.Sequential:
    return nn.Sequential(*(EAModule(channels, heads, window) for _ in range(EA_MODULES)))
