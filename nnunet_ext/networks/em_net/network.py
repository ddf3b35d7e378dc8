"""EM-Net: efficient channel and frequency learning with Mamba, in 2D and 3D.

Source: Chang, Zeng, Huang, Ni, "EM-Net: Efficient Channel and Frequency Learning with Mamba for 3D Medical Image
Segmentation", MICCAI 2024 (arXiv 2409.17675).

EM-Net is a U-shaped network on tokens: a patch-embedding stem, stages of EFL layers (a learnable filter on the
spectrum) and CSR Mamba layers (Mamba on tokens and on their squeezed channels), a decoder of CSR Mamba layers, and
convolutions at full resolution. The authors' code fixes the stem to 4, the downsamplings to 2 and the last two axes of
the patch to the same length; this implementation supports any stem, strides and patch, 2D, several modalities, and a
head on every decoder stage. EFL transforms over space, as the paper says, whereas the authors' code transforms memory
in the wrong order: `efl_layout="authors"`, which imported weights have, reproduces it (see
`nnunet_ext.networks.em_net.efl`). Both Mamba calls of a layer run as one batch, which only affects rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import ChannelMLP, ChannelNorm
from nnunet_ext.blocks.conv import ConvNormAct, conv_1x1
from nnunet_ext.blocks.dimension import conv_transpose_op
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.checks import check_input, check_widths
from nnunet_ext.networks.em_net.adapting import TIED
from nnunet_ext.networks.em_net.csr_mamba import CSRMamba
from nnunet_ext.networks.em_net.efl import EFL, check_layout
from nnunet_ext.networks.entry import at_any_precision, with_empty_batches
from nnunet_ext.networks.heads import check_heads, drop_unused_heads
from nnunet_ext.networks.topology import PerStage, Topology, total_strides
from nnunet_ext.utils.torch_private import has_hooks

LAYERS_PER_STAGE = 3
EFL_LAYERS = 2
"""EFL layers of a stage that has any; they come in pairs, see `nnunet_ext.networks.em_net.efl`."""
_WIDTHS = (48, 96, 192, 384)
"""Widths of the paper's stages; full resolution has the width of the first stage."""
_SKIP_EXPANSION = 4
_STAGE_EPS = 1e-6
_SLOPE = 0.01


@dataclass(frozen=True)
class EMNetVariant:
    """A variant of EM-Net.

    Attributes:
        efl: Stages that begin with two EFL layers: the deeper half, the shallower half, all or none.
        mamba: Whether the CSR layers apply Mamba.
    """

    efl: Literal["deep", "shallow", "all", "none"]
    mamba: bool = True

    def efl_layers(self, stages: int) -> tuple[int, ...]:
        """Number of EFL layers for each of `stages` stages; the other layers of a stage are CSR Mamba layers."""
        half, whole = stages // 2, range(stages)
        chosen = {"deep": whole[stages - half :], "shallow": whole[:half], "all": whole, "none": whole[:0]}[self.efl]
        return tuple(EFL_LAYERS if stage in chosen else 0 for stage in whole)


VARIANTS = {
    "EM-Net": EMNetVariant(efl="deep"),
    "A": EMNetVariant(efl="none"),
    "B": EMNetVariant(efl="shallow"),
    "C": EMNetVariant(efl="all"),
    "no_mamba": EMNetVariant(efl="deep", mamba=False),
}
"""The paper's variants by its letters, and EM-Net with both Mamba calls replaced by the identity."""


class EMNet(nn.Module):
    """EM-Net with nnU-Net's constructor vocabulary.

    Level 0 is full resolution and has only a decoder stage; levels 1 to S hold the encoder's stages. The encoder
    embeds the image by a convolution with kernel and stride strides[1] and downsamples by strides[2:]; a stage's output
    x is passed to the decoder as mlp(norm(x)). The decoder upsamples by transposed convolutions with the same kernels
    and adds the skips; at full resolution it adds a convolution block on the image.

    Positions and filters are tied to the patch, so an input of another size raises an error.

    Args:
        input_channels: M, the number of modalities.
        num_classes: K, the number of logits.
        patch_size: P in voxels, divisible by the product of the strides.
        n_stages: S + 1: full resolution and S stages, at least 2.
        features_per_stage: Width of the full-resolution convolutions, then of each stage.
        conv_op: ``torch.nn.Conv2d`` or ``torch.nn.Conv3d``.
        kernel_sizes: Odd kernel sizes of the residual convolution blocks, per level and axis.
        strides: Strides per level and axis: all 1, then the stem's, then those into each later stage.
        variant: A name in `VARIANTS`.
        efl_layout: ``"spatial"`` or ``"authors"``; see `nnunet_ext.networks.em_net.efl`.
        outputs: Number of heads with deep supervision, from full resolution down; None: one on each of the S decoder
            stages.
        deep_supervision: Whether to build and return heads on the lower decoder stages.

    Shape:
        (B, M, *P) -> (B, K, *P); with deep supervision a list of `outputs` logits, full resolution first, at the
        resolutions of levels 0, 1, ...

    Raises:
        ValueError: for sizes that do not fit together (see `Topology.create`), fewer than two stages, a patch that
            leaves one voxel at the lowest stage, an unknown variant or layout, or an invalid number of outputs.
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
        variant: str = "EM-Net",
        efl_layout: str = "spatial",
        outputs: int | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_widths(input_channels, num_classes)
        if n_stages < 3:
            raise ValueError(f"`n_stages`={n_stages} must be at least 3: full resolution and two stages")
        if variant not in VARIANTS:
            raise ValueError(f"unknown `variant` {variant!r}; known: {', '.join(VARIANTS)}")
        check_layout(efl_layout)
        topology = Topology.create(
            conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
        )
        if max(topology.sizes[-1]) == 1:
            raise ValueError(
                f"`patch_size`={topology.patch_size} leaves one voxel at the lowest stage, where batch norm has no "
                "variance; use fewer stages or a larger patch"
            )
        if outputs is None:
            outputs = n_stages - 1
        elif not 1 <= outputs <= n_stages - 1:
            raise ValueError(f"`outputs`={outputs} must be from 1 to {n_stages - 1}, the number of decoder stages")
        self.input_channels = input_channels
        self.patch_size = topology.patch_size
        self.variant, self.efl_layout = variant, efl_layout
        self.encoder = _Encoder(input_channels, conv_op, topology, VARIANTS[variant], efl_layout)
        self.decoder = _Decoder(
            input_channels,
            num_classes=num_classes,
            conv_op=conv_op,
            topology=topology,
            variant=VARIANTS[variant],
            outputs=outputs,
            deep_supervision=deep_supervision,
        )

    @with_empty_batches
    @at_any_precision
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        check_input(x, self.input_channels, self.patch_size)
        return self.decoder(x, self.encoder(x))

    @classmethod
    def adapt_topology(
        cls,
        *,
        patch_size: int | Sequence[int],
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: PerStage,
        strides: PerStage,
    ) -> dict[str, Any]:
        """EM-Net's arguments for the poolings of a U-Net's plan, with the paper's widths.

        With Q poolings, the stem combines the first two (only the first if Q = 2) and each later stage uses one more,
        for up to four stages; further poolings are unused. Kernels are 3, widths 48, 96, 192, 384.

        Raises:
            ValueError: for fewer than two poolings, and for the same reasons as `Topology.create`.
        """
        plan = Topology.create(
            conv_op, patch_size, n_stages, features_per_stage, kernel_sizes=kernel_sizes, strides=strides
        )
        ones, *poolings = plan.strides
        if len(poolings) < 2:
            raise ValueError(
                f"EM-Net needs at least 2 poolings, the plan has {len(poolings)}: `strides`={plan.strides}; "
                "plan a larger patch"
            )
        taken = min(2, len(poolings) - 1)
        stem = total_strides(poolings[:taken])
        steps = [ones, stem, *poolings[taken:]][: 1 + len(_WIDTHS)]
        return {
            "patch_size": plan.patch_size,
            "n_stages": len(steps),
            "features_per_stage": (_WIDTHS[0], *_WIDTHS)[: len(steps)],
            "conv_op": conv_op,
            "kernel_sizes": 3,
            "strides": steps,
        }


class _Encoder(nn.Module):
    """Lists have one entry per stage: entry s belongs to level s + 1."""

    def __init__(
        self,
        input_channels: int,
        conv_op: type[nn.Module],
        topology: Topology,
        variant: EMNetVariant,
        efl_layout: str,
    ) -> None:
        super().__init__()
        self.downsampling, self.stages, self.skips = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        efl_layers = variant.efl_layers(len(topology.features) - 1)
        width = input_channels
        for level, n_efl in enumerate(efl_layers, start=1):
            features, size, stride = topology.features[level], topology.sizes[level], topology.strides[level]
            down = conv_op(width, features, kernel_size=stride, stride=stride)
            # The stem normalises its output, the later downsamplings their input.
            parts = (down, _VolumeNorm(features)) if level == 1 else (_VolumeNorm(width), down)
            self.downsampling.append(nn.Sequential(*parts))
            filters = [EFL(features, size, bool(i % 2), efl_layout) for i in range(n_efl)]
            self.stages.append(
                nn.Sequential(*filters, *_csr_layers(LAYERS_PER_STAGE - n_efl, conv_op, topology, level, variant))
            )
            self.skips.append(_Skip(features))
            width = features

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for down, stage, skip in zip(self.downsampling, self.stages, self.skips, strict=True):
            x = stage(down(x))
            skips.append(skip(x))
        return skips


class _Decoder(nn.Module):
    """Stages are listed from full resolution down, so that head 0 is the same with and without deep supervision."""

    def __init__(
        self,
        input_channels: int,
        *,
        num_classes: int,
        conv_op: type[nn.Module],
        topology: Topology,
        variant: EMNetVariant,
        outputs: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.outputs = outputs
        width, kernel = topology.features[0], topology.kernel_sizes[0]
        self.image = _ImageBlock(conv_op, input_channels, width, kernel)
        self.upsampling, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (features, below) in enumerate(pairwise(topology.features)):
            stride = topology.strides[level + 1]
            up = conv_transpose_op(conv_op)(below, features, kernel_size=stride, stride=stride, bias=False)
            self.upsampling.append(up)
            layers: Sequence[nn.Module] = (
                [_conv(conv_op, width, width, kernel) for _ in range(2)]
                if level == 0
                else _csr_layers(LAYERS_PER_STAGE, conv_op, topology, level, variant)
            )
            self.stages.append(nn.Sequential(*layers))
            if level == 0 or (deep_supervision and level < outputs):
                self.seg_layers.append(conv_op(features, num_classes, kernel_size=1))
        self.register_load_state_dict_pre_hook(drop_unused_heads)

    def forward(self, image: Tensor, skips: list[Tensor]) -> Tensor | list[Tensor]:
        if self.deep_supervision:
            check_heads(self.seg_layers, self.outputs)
        x, outputs = skips[-1], []
        for level in reversed(range(len(self.stages))):
            if level == 0 and x.device.type != "cpu":
                # On other devices, instance norm would copy each full-resolution map to this layout.
                x = x.contiguous()
            up = self.upsampling[level]
            x = cpu_channels_last(up(x))
            skip = self.image(image) if level == 0 else skips[level - 1]
            # In place: no gradient needs the memory of an upsampled map, the largest ones here; but hooks may keep it,
            # and torch.export of 2.5 takes it for a constant.
            x = x + skip if has_hooks(up) or torch.compiler.is_compiling() else x.add_(skip)
            x = self.stages[level](x)
            if level == 0 or (self.deep_supervision and level < self.outputs):
                outputs.append(conv_1x1(self.seg_layers[level], x))
        return outputs[::-1] if self.deep_supervision else outputs[0]


class _VolumeNorm(ChannelNorm):
    """Channel norm of a (B, C, *P) map, with the smaller eps of the encoder's norms between stages."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, _STAGE_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Skip(nn.Module):
    """mlp(norm(x)) over channels, C -> 4C -> C, applied to a stage's output for the decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, _STAGE_EPS)
        self.mlp = ChannelMLP(channels, _SKIP_EXPANSION * channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x.movedim(1, -1))).movedim(-1, 1)


class _ImageBlock(nn.Module):
    """LeakyReLU(conv2(conv1(image)) + shortcut(image)); each convolution has a norm, and conv1 an activation."""

    def __init__(self, conv_op: type[nn.Module], channels: int, features: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = _conv(conv_op, channels, features, kernel)
        self.conv2 = _conv(conv_op, features, features, kernel, slope=1)
        self.shortcut = _conv(conv_op, channels, features, (1,) * len(kernel), slope=1)

    def forward(self, image: Tensor) -> Tensor:
        image = cpu_channels_last(image)
        return F.leaky_relu(self.conv2(self.conv1(image)) + self.shortcut(image), _SLOPE, inplace=True)


def _conv(
    conv_op: type[nn.Module], channels: int, features: int, kernel: Sequence[int], slope: float = _SLOPE
) -> ConvNormAct:
    return ConvNormAct(conv_op, channels, features, kernel, slope=slope, bias=False, affine=False)


def _csr_layers(
    number: int, conv_op: type[nn.Module], topology: Topology, level: int, variant: EMNetVariant
) -> list[CSRMamba]:
    features, size, kernel = topology.features[level], topology.sizes[level], topology.kernel_sizes[level]
    return [CSRMamba(conv_op, features, size, kernel, variant.mamba) for _ in range(number)]
