"""FAF-Net's encoder: features at stride 4 and a threshold for every position (ATL).

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation); see `nnunet_ext.networks.faf_net`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_ext.blocks.conv import two_conv
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.faf_net.dilated_resnet import RESNETS, DilatedResNet
from nnunet_ext.networks.topology import Topology

ENCODERS = (*RESNETS, "plan")
_STRIDE = 4
_CHANNELS = 512
_MIN_GRID = 2


class FAFEncoder(nn.Module):
    """F = conv1x1(backbone), tau = conv1x1(ReLU(conv1x1(backbone))) (ATL), no biases."""

    def __init__(self, input_channels: int, name: str, topology: Topology, channels: int | None) -> None:
        super().__init__()
        if name not in ENCODERS:
            raise ValueError(f"unknown `encoder` {name!r}; known: {', '.join(ENCODERS)}")
        self.to_rgb: nn.Module = nn.Identity()
        self.repeat = False
        if name == "plan":
            self.backbone: Any = _PlanBackbone(input_channels, topology)
        else:
            self.backbone = DilatedResNet(name)
            self.repeat = input_channels == 1
            if input_channels not in (1, 3):
                self.to_rgb = nn.Conv2d(input_channels, 3, 1, bias=False)
                nn.init.constant_(self.to_rgb.weight, 1 / input_channels)
        if channels is None:
            channels = _CHANNELS if name in RESNETS else min(_CHANNELS, self.backbone.width)
        self.channels = channels
        self.reduce = nn.Conv2d(self.backbone.width, channels, 1, bias=False)
        self.threshold = nn.Sequential(
            nn.Conv2d(self.backbone.width, channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1, bias=False),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M, H, W) -> features (N, C, h, w), threshold map (N, 1, h, w)."""
        x = self.describe(images)
        return self.reduce(x), self.threshold(x)

    def describe(self, images: Tensor) -> Tensor:
        """The backbone's maps, which both projections take: (N, M, H, W) -> (N, width, h, w)."""
        return self.backbone(images.expand(-1, 3, -1, -1) if self.repeat else self.to_rgb(images))

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Size of the feature grid for images of a given size.

        Raises:
            ValueError: if the grid has fewer than 2 positions on an axis.
        """
        if isinstance(self.backbone, DilatedResNet):
            steps: tuple[int, ...] = (_STRIDE,) * 2
            grid = tuple(-(-s // _STRIDE) for s in size)
            least = tuple((_MIN_GRID - 1) * step + 1 for step in steps)
        else:
            steps = self.backbone.stride
            grid = tuple(s // step for s, step in zip(size, steps, strict=True))
            least = tuple(_MIN_GRID * step for step in steps)
        if min(grid) < _MIN_GRID:
            raise ValueError(f"slices of {tuple(size)} voxels are too small for this encoder: at least {least}")
        return grid


class _PlanBackbone(nn.Module):
    """The plan's stages, in-plane, up to a total stride of 4 on both axes."""

    def __init__(self, input_channels: int, topology: Topology) -> None:
        super().__init__()
        self.pools, self.stages = nn.ModuleList(), nn.ModuleList()
        self.width, self.stride = input_channels, (1, 1)
        for features, kernel, stride in zip(topology.features, topology.kernel_sizes, topology.strides, strict=True):
            step = (stride[-2], stride[-1])
            total = (self.stride[0] * step[0], self.stride[1] * step[1])
            if max(total) > _STRIDE:
                break
            self.pools.append(nn.MaxPool2d(step, step) if max(step) > 1 else nn.Identity())
            self.stages.append(two_conv(nn.Conv2d, self.width, features, kernel[-2:]))
            self.width, self.stride = features, total

    def forward(self, x: Tensor) -> Tensor:
        x = cpu_channels_last(x)
        for pool, stage in zip(self.pools, self.stages, strict=True):
            x = stage(pool(x))
        return x
