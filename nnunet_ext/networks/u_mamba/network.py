"""U-Mamba: a residual U-Net with Mamba at its bottleneck or in its encoder, in 2D and 3D.

Source: Ma, Li, Wang, "U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation" (arXiv 2401.04722).

The encoder has a stem and residual blocks, the decoder nearest-neighbour upsampling. Values and gradients are those of
the authors' code, but two things are computed differently: the decoder's 1x1 convolution precedes the upsampling, with
which it commutes, and so works on fewer voxels; and the voxels of channels-last maps are tokens without a copy. The
published form is a fork of an earlier nnU-Net that needs mamba-ssm's CUDA build; here Mamba runs on
`nnunet_ext.ops.selective_scan`, on every device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from operator import mod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.conv import conv_1x1
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.checks import check_input, check_widths
from nnunet_ext.networks.entry import at_any_precision, with_empty_batches
from nnunet_ext.networks.heads import check_heads, drop_unused_heads
from nnunet_ext.networks.topology import PerStage, Topology, numbers_per_stage
from nnunet_ext.networks.u_mamba.adapting import TIED
from nnunet_ext.networks.u_mamba.mamba_layer import MambaLayer
from nnunet_ext.networks.u_mamba.residual_block import ResidualBlock

_HE_SLOPE = 0.01


@dataclass(frozen=True)
class UMambaVariant:
    """A variant of U-Mamba.

    Attributes:
        layers: Stages that end with a Mamba layer: all (in 2D every second one, including the lowest), only the lowest,
            or none.
        channel_tokens: Whether channels are the tokens of a stage that has at most as many voxels as channels.
    """

    layers: Literal["all", "lowest", "none"]
    channel_tokens: bool = False

    def stages(self, n_stages: int, axes: int) -> range:
        """Returns the indices of the stages that end with a Mamba layer."""
        lowest, step = n_stages - 1, 2 if axes == 2 else 1
        first = {"all": lowest % step, "lowest": lowest, "none": n_stages}[self.layers]
        return range(first, n_stages, step)


VARIANTS = {
    "Enc": UMambaVariant("all", channel_tokens=True),
    "Bot": UMambaVariant("lowest"),
    "no_mamba": UMambaVariant("none"),
}
"""The paper's two variants, and Bot without its Mamba layer."""


class UMamba(nn.Module):
    """U-Mamba with nnU-Net's constructor vocabulary.

    Stage s of the encoder: a residual block with stride strides[s], n_s - 1 further blocks, and in some stages a Mamba
    layer, whose output is both the skip and the next stage's input. A stem of n_0 blocks stands before stage 0. The
    decoder upsamples to the skip's size by nearest neighbours, reduces to the skip's width by a 1x1 convolution,
    concatenates both (upsampled first) and applies a residual block and m - 1 further ones, with the kernel of the
    skip's stage. In 2D the decoder's last stage, at full resolution, takes no skip, as in the authors' code.

    n_s is `n_conv_per_stage`, but 1 for s >= ceil(S / 2); m is `n_conv_per_stage_decoder`, but 1 for decoder stages
    i >= ceil(S / 2) counted from the lowest, i = 0.

    Weights of Enc are tied to the patch where channels are the tokens: an input of another size is an error. The other
    variants take every size that the strides divide.

    Args:
        input_channels: M, the number of modalities.
        num_classes: K, the number of logits.
        patch_size: P in voxels, divisible by the product of the strides.
        n_stages: S, the number of stages, at least 2.
        features_per_stage: Channels C_s per stage.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: Odd kernel sizes, per stage and axis.
        strides: Stride into each stage, per stage and axis; all 1 for the first.
        n_conv_per_stage: Blocks of every stage of the encoder, or one number per stage; see above.
        n_conv_per_stage_decoder: The same for the decoder's S - 1 stages, from the lowest up.
        variant: A name of `VARIANTS`.
        deep_supervision: Whether to build and return 1x1 heads on the lower decoder stages.

    Shape:
        (B, M, *P) -> (B, K, *P); with deep supervision a list of S - 1 logits, full resolution first.

    Raises:
        ValueError: for sizes that do not fit together (see `Topology.create`), a patch that leaves one voxel at the
            lowest stage, or an unknown variant.
    """

    tied_to_patch = TIED
    plan_arguments = ("n_conv_per_stage", "n_conv_per_stage_decoder")
    """Arguments besides the topology that a plan for nnU-Net's U-Net also provides."""

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
        n_conv_per_stage: int | Sequence[int] = 2,
        n_conv_per_stage_decoder: int | Sequence[int] = 2,
        variant: str = "Enc",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_widths(input_channels, num_classes)
        if variant not in VARIANTS:
            raise ValueError(f"unknown `variant` {variant!r}; known: {', '.join(VARIANTS)}")
        topology = Topology.create(
            conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
        )
        if max(topology.sizes[-1]) == 1:
            raise ValueError(
                f"`patch_size`={topology.patch_size} leaves one voxel at the lowest stage, where instance norm has no "
                "variance; use fewer stages or a larger patch"
            )
        encoder_blocks = numbers_per_stage("n_conv_per_stage", n_conv_per_stage, n_stages)
        decoder_blocks = numbers_per_stage("n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)
        half = ceil(n_stages / 2)
        self.input_channels = input_channels
        self.patch_size = topology.patch_size
        self.variant = variant
        self.multiples = tuple(prod(axis) for axis in zip(*topology.strides, strict=True))
        self.encoder = _Encoder(input_channels, conv_op, topology, _shortened(encoder_blocks, half), VARIANTS[variant])
        self.decoder = _Decoder(num_classes, conv_op, topology, _shortened(decoder_blocks, half), deep_supervision)
        self.apply(_initialise)

    @with_empty_batches
    @at_any_precision
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self._check_input(x)
        return self.decoder(self.encoder(cpu_channels_last(x)))

    def _check_input(self, x: Tensor) -> None:
        if VARIANTS[self.variant].channel_tokens:
            check_input(x, self.input_channels, self.patch_size)
            return
        axes, (channels, *size) = len(self.multiples), x.shape[1:]
        if len(size) != axes or channels != self.input_channels or any(map(mod, size, self.multiples)):
            raise ValueError(
                f"this network was built for inputs of shape (B, {self.input_channels}, and {axes} sizes divisible by "
                f"{', '.join(map(str, self.multiples))}), got {tuple(x.shape)}"
            )


class _Encoder(nn.Module):
    """`mamba_layers` has entries only for the stages that end with such a layer, under their indices."""

    def __init__(
        self,
        input_channels: int,
        conv_op: type[nn.Module],
        topology: Topology,
        blocks: Sequence[int],
        variant: UMambaVariant,
    ) -> None:
        super().__init__()
        width = topology.features[0]
        self.stem = _stage(
            conv_op, input_channels=input_channels, features=width, kernel=topology.kernel_sizes[0], blocks=blocks[0]
        )
        self.stages, self.mamba_layers = nn.ModuleList(), nn.ModuleDict()
        with_layer = variant.stages(len(topology.features), len(topology.patch_size))
        for s, (features, size) in enumerate(zip(topology.features, topology.sizes, strict=True)):
            kernel, stride = topology.kernel_sizes[s], topology.strides[s]
            self.stages.append(
                _stage(conv_op, input_channels=width, features=features, kernel=kernel, blocks=blocks[s], stride=stride)
            )
            if s in with_layer:
                channel_tokens = variant.channel_tokens and prod(size) <= features
                self.mamba_layers[str(s)] = MambaLayer(features, size, channel_tokens)
            width = features

    def forward(self, x: Tensor) -> list[Tensor]:
        x, skips = self.stem(x), []
        for s, stage in enumerate(self.stages):
            x = stage(x)
            if str(s) in self.mamba_layers:
                x = self.mamba_layers[str(s)](x)
            skips.append(x)
        return skips


class _Decoder(nn.Module):
    """Levels are listed from full resolution down, so that head 0 is the same with and without deep supervision."""

    def __init__(
        self,
        num_classes: int,
        conv_op: type[nn.Module],
        topology: Topology,
        blocks: Sequence[int],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.strides = topology.strides[1:]
        self.skip_at_full_resolution = len(topology.patch_size) == 3
        self.projections, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (features, below) in enumerate(pairwise(topology.features)):
            self.projections.append(conv_op(below, features, kernel_size=1))
            width = 2 * features if self._takes_skip(level) else features
            number = blocks[len(blocks) - 1 - level]
            self.stages.append(
                _stage(
                    conv_op, input_channels=width, features=features, kernel=topology.kernel_sizes[level], blocks=number
                )
            )
            if level == 0 or deep_supervision:
                self.seg_layers.append(conv_op(features, num_classes, kernel_size=1))
        self.register_load_state_dict_pre_hook(drop_unused_heads)

    def forward(self, skips: list[Tensor]) -> Tensor | list[Tensor]:
        if self.deep_supervision:
            check_heads(self.seg_layers, len(self.stages))
        x, outputs = skips[-1], []
        for level in reversed(range(len(self.stages))):
            x = _upsampled(conv_1x1(self.projections[level], x), self.strides[level])
            x = self.stages[level](torch.cat((x, skips[level]), 1) if self._takes_skip(level) else x)
            if level == 0 or self.deep_supervision:
                outputs.append(conv_1x1(self.seg_layers[level], x))
        return outputs[::-1] if self.deep_supervision else outputs[0]

    def _takes_skip(self, level: int) -> bool:
        return level > 0 or self.skip_at_full_resolution


def _stage(
    conv_op: type[nn.Module],
    *,
    input_channels: int,
    features: int,
    kernel: Sequence[int],
    blocks: int,
    stride: Sequence[int] | None = None,
) -> nn.Sequential:
    """A residual block with a projection, and blocks - 1 further ones without."""
    first = ResidualBlock(conv_op, input_channels, features, kernel, stride=stride)
    others = (ResidualBlock(conv_op, features, features, kernel, projection=False) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def _shortened(blocks: Sequence[int], half: int) -> list[int]:
    """`blocks` with 1 from index `half` on."""
    return [number if index < half else 1 for index, number in enumerate(blocks)]


def _upsampled(x: Tensor, stride: Sequence[int]) -> Tensor:
    size = [length * step for length, step in zip(x.shape[2:], stride, strict=True)]
    return F.interpolate(x, size, mode="nearest")


def _initialise(module: nn.Module) -> None:
    """He initialisation of the convolutions, with biases of 0; Mamba keeps its own initialisation."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, a=_HE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
