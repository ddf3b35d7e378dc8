"""FAF-Net's encoder: features at stride 4 and a threshold for every position (ATL).

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation); see `nnunet_ext.networks.faf_net`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.conv import two_conv
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.faf_net.dilated_resnet import RESNETS, DilatedResNet
from nnunet_ext.networks.faf_net.positions import STRIDE
from nnunet_ext.networks.faf_net.pretrainable import Pretrainable
from nnunet_ext.networks.faf_net.timm_backbone import PREFIX, TimmBackbone
from nnunet_ext.networks.topology import Topology
from nnunet_ext.utils.state_dicts import is_file_name, read_state_dict

ENCODERS = (*RESNETS, "plan")
_CHANNELS = 512
_MIN_GRID = 2


class FAFEncoder(nn.Module):
    """F = conv1x1(backbone), tau = conv1x1(ReLU(conv1x1(backbone))) (ATL), no biases.

    Args:
        input_channels: M, channels of the images.
        name: One of `ENCODERS`, or ``timm:`` and a name of timm.
        topology: Stages of the plan.
        channels: C; None: the backbone's width, at most 512 (for torchvision's ResNets 512).
        frozen: Whether the backbone, and the convolution to three channels before it, are never trained: they get no
            gradients and stay in evaluation.
    """

    def __init__(
        self, input_channels: int, name: str, topology: Topology, channels: int | None, frozen: bool = False
    ) -> None:
        super().__init__()
        self.to_rgb: nn.Module = nn.Identity()
        self.repeat = False
        if name == "plan":
            self.backbone: Any = _PlanBackbone(input_channels, topology)
        else:
            self.backbone = _pretrainable(name)
            self.repeat = input_channels == 1
            if input_channels not in (1, 3):
                self.to_rgb = nn.Conv2d(input_channels, 3, 1, bias=False)
                nn.init.constant_(self.to_rgb.weight, 1 / input_channels)
        if frozen and name == "plan":
            raise ValueError("`encoder_frozen`=True needs a pretrained encoder, and 'plan' starts from scratch")
        self.frozen = frozen
        for parameter in (*self.backbone.parameters(), *self.to_rgb.parameters()):
            parameter.requires_grad_(not frozen)
        if channels is None:
            channels = _CHANNELS if name in RESNETS else min(_CHANNELS, self.backbone.width)
        self.channels = channels
        self.reduce = nn.Conv2d(self.backbone.width, channels, 1, bias=False)
        self.threshold = nn.Sequential(
            nn.Conv2d(self.backbone.width, channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1, bias=False),
        )
        self.train(self.training)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, H, W) -> features (N, C, h, w), threshold map (N, 1, h, w)."""
        return self.project(self.describe(images))

    def describe(self, images: Tensor) -> Tensor:
        """The backbone's maps, which are fixed for an image if it is frozen: (N, M, H, W) -> (N, width, h, w)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone(self.rgb(images))

    def rgb(self, images: Tensor) -> Tensor:
        """The input of the backbone: (N, M, H, W) -> (N, 3, H, W), with the plan's encoder (N, M, H, W)."""
        return images.expand(-1, 3, -1, -1) if self.repeat else self.to_rgb(images)

    @property
    def can_be_cached(self) -> bool:
        """Whether `maps` of a slice can be kept for all windows of it."""
        return self.frozen and isinstance(self.backbone, TimmBackbone)

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps from which `TimmBackbone.on_grid` makes what `describe` gives, at their own strides."""
        return self.backbone.maps(self.rgb(images))

    def project(self, described: Tensor) -> tuple[Tensor, Tensor]:
        """The part that is always trained: (N, width, h, w) -> features (N, C, h, w), threshold map (N, 1, h, w)."""
        return self.reduce(described), self.threshold(described)

    def load_weights(self, weights: str | Path | Mapping[str, Tensor]) -> None:
        """Loads weights into the backbone; see `FAFNet.load_encoder_weights`."""
        if not isinstance(self.backbone, Pretrainable):
            known = f"{', '.join(RESNETS)} and {PREFIX}NAME"
            shown = repr(weights) if isinstance(weights, str) else "a state dict"
            raise ValueError(f"`weights`={shown} exist for {known} only; encoder 'plan' needs weights=None")
        if not isinstance(weights, Mapping) and weights not in self.backbone.known_weights:
            if not is_file_name(weights):
                known = ", ".join(self.backbone.known_weights)
                raise ValueError(f"unknown `weights` {weights!r}; known: {known}, a file's path, None")
            weights = read_state_dict(weights)
        self.backbone.load_pretrained(weights)

    def train(self, mode: bool = True) -> "FAFEncoder":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Size of the feature grid for images of a given size.

        Raises:
            ValueError: if the grid has fewer than 2 positions on an axis.
        """
        grid = self.backbone.grid(size)
        if min(grid) < _MIN_GRID:
            least = self.backbone.least_size(_MIN_GRID)
            raise ValueError(f"slices of {tuple(size)} voxels are too small for this encoder: at least {least}")
        return grid


def _pretrainable(name: str) -> DilatedResNet | TimmBackbone:
    """A backbone by name.

    Raises:
        ValueError: for an unknown name.
    """
    if name.startswith(PREFIX):
        return TimmBackbone(name.removeprefix(PREFIX))
    if name not in RESNETS:
        raise ValueError(f"unknown `encoder` {name!r}; known: {', '.join(ENCODERS)}, and {PREFIX}NAME for timm's")
    return DilatedResNet(name)


class _PlanBackbone(nn.Module):
    """The plan's stages, in-plane, up to a total stride of 4 on both axes."""

    def __init__(self, input_channels: int, topology: Topology) -> None:
        super().__init__()
        self.pools, self.stages = nn.ModuleList(), nn.ModuleList()
        self.width, self.stride = input_channels, (1, 1)
        for features, kernel, stride in zip(topology.features, topology.kernel_sizes, topology.strides, strict=True):
            step = (stride[-2], stride[-1])
            total = (self.stride[0] * step[0], self.stride[1] * step[1])
            if max(total) > STRIDE:
                break
            self.pools.append(nn.MaxPool2d(step, step) if max(step) > 1 else nn.Identity())
            self.stages.append(two_conv(nn.Conv2d, self.width, features, kernel[-2:]))
            self.width, self.stride = features, total

    def forward(self, x: Tensor) -> Tensor:
        x = cpu_channels_last(x)
        for pool, stage in zip(self.pools, self.stages, strict=True):
            x = stage(pool(x))
        return x

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Size of the output for images of a given size."""
        return tuple(s // step for s, step in zip(size, self.stride, strict=True))

    def least_size(self, positions: int) -> tuple[int, ...]:
        """The smallest images with this many positions per axis."""
        return tuple(positions * step for step in self.stride)
