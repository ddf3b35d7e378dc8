"""Encoders of timm (PyTorch Image Models) as FAF-Net's backbone: levels of strides 4 to 16 on a grid of stride 4.

FAF-Net's own encoder is a dilated ResNet-101; any network of timm with ``forward_intermediates`` can take its place,
vision transformers included. timm is imported when one is built.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.blocks.channelwise import at_least_float32
from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.faf_net.positions import read_at
from nnunet_ext.networks.faf_net.pretrainable import Pretrainable
from nnunet_ext.networks.faf_net.timm_models import PREFIX, pruned_network
from nnunet_ext.networks.faf_net.timm_weights import HUB, load_timm_weights

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-6


class _Sizes(NamedTuple):
    """Image sizes that a network takes.

    Attributes:
        multiple: m.
        remainder: 1: sizes are 1 mod m, and the maps' outermost positions lie on the outermost pixels (strided
            convolutions that pad both sides alike); 0: sizes are multiples of m, and positions lie at the centres of
            cells (patches).
        resized: (H, W) to which all images are resized, by networks of a single size; None: images are padded.
    """

    multiple: int
    remainder: int
    resized: tuple[int, int] | None = None

    def padded(self, size: int) -> int:
        """The smallest size that the network takes, of at least `size` pixels."""
        return -(-(size - self.remainder) // self.multiple) * self.multiple + self.remainder


class TimmBackbone(Pretrainable):
    """A network of timm up to stride 16, its parameters under timm's names below ``model.``.

    The result concatenates three kinds of information, all on the grid of stride 4: of a hierarchical network the last
    maps at its strides 4, 8 and 16 (edges and texture, parts, and objects; stride 2 is too local to tell tissues apart,
    and stride 32 too coarse for structures of a few pixels), and of a transformer with one stride, whose patches may
    have up to 16 pixels, the tokens after 1/2, 3/4 and all of its blocks, through its last norm. Networks that offer
    `output_stride` are dilated instead of strided from stride 8 on, which computes the same functions at more
    positions; what remains is bilinear interpolation, exact about the positions (see `read_at`). Each level is
    standardised over its channels at every position, x -> (x - mean) / sqrt(variance + 1e-6), so that all levels weigh
    the same in the convolutions that follow, whatever the network's own scale.

    Images of any size are padded at the end, by their last row and column, to the next size that the network takes.
    Networks of a single size get the images resized to it. Positions are exact for networks that treat all sides of an
    image alike; shortcuts that average 2 x 2 positions (``resnet50d``) move their share of a map by half a cell.

    Images are expected as nnU-Net normalises them, with mean 0 and standard deviation 1. Networks that were trained on
    images normalised by ImageNet's mean and standard deviation, mu_I and sigma_I, get them as they are; those trained
    with another mean mu and deviation sigma get (sigma_I x + mu_I - mu) / sigma, the same values as an image of
    ImageNet's statistics.

    Args:
        name: Name of a network in timm, with or without the tag of its weights (``resnet50.a1_in1k``).

    Attributes:
        width: Channels of the output.
        frozen_norms: See `Pretrainable`.

    Shape:
        (B, 3, H, W) -> (B, width, ceil(H / 4), ceil(W / 4))

    Raises:
        ValueError: for an unknown name, with similar ones, or a network without maps of a stride from 4 to 16.
    """

    known_weights = (HUB,)
    filter_step = 2
    scale: Tensor
    shift: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.model, self.levels, self.flat = pruned_network(name)
        self.sizes, widths = self._probe()
        self.width = sum(widths)
        means, deviations = (torch.tensor(self.model.pretrained_cfg[key]) for key in ("mean", "std"))
        scale = torch.tensor(_IMAGENET_STD) / deviations
        shift = (torch.tensor(_IMAGENET_MEAN) - means) / deviations
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.on_grid(self.maps(x), x.shape[-2:])

    def maps(self, x: Tensor) -> list[Tensor]:
        """The levels' standardised maps at their own strides."""
        x = x * self.scale + self.shift
        if self.sizes.resized is None:
            ends = [self.sizes.padded(size) - size for size in x.shape[-2:]]
            if any(ends):
                x = F.pad(x, (0, ends[1], 0, ends[0]), mode="replicate")
        else:
            x = F.interpolate(x, self.sizes.resized, mode="bilinear", align_corners=False)
        return [_standardised(level) for level in self._levels(cpu_channels_last(x))]

    def on_grid(
        self, maps: Sequence[Tensor], size: Sequence[int], start: Sequence[int] = (0, 0), window: Sequence[int] = ()
    ) -> Tensor:
        """Maps of an image on the grid of stride 4, concatenated.

        Args:
            maps: Result of `maps`.
            size: (H, W) of the image in pixels.
            start: First row and column of the window to describe.
            window: Size of the window; empty: the whole image.
        """
        read = []
        for level in maps:
            firsts, steps = zip(*map(self._positions, size, level.shape[-2:]), strict=True)
            relative = [first - s for first, s in zip(firsts, start, strict=True)]
            read.append(read_at(level, window or size, relative, steps))
        return torch.cat(read, 1)

    def _load(self, weights: str | Mapping[str, Tensor]) -> None:
        load_timm_weights(self.name, self.model, weights)

    def _positions(self, size: int, count: int) -> tuple[float, float]:
        """Pixel of the first of a map's positions along an axis, and their distance."""
        if self.sizes.remainder:
            return 0.0, (self.sizes.padded(size) - 1) / max(count - 1, 1)
        step = (size if self.sizes.resized else self.sizes.padded(size)) / count
        return (step - 1) / 2, step

    def _levels(self, x: Tensor) -> list[Tensor]:
        norm = {"norm": True} if self.flat else {}
        return self.model.forward_intermediates(
            x, indices=self.levels, intermediates_only=True, stop_early=True, output_fmt="NCHW", **norm
        )

    def _probe(self) -> tuple[_Sizes, list[int]]:
        """Image sizes that the network takes, found by trying, and the channels of its levels."""
        reductions = [self.model.feature_info[i]["reduction"] for i in self.levels]
        stride = max(reductions)
        native = tuple(self.model.pretrained_cfg["input_size"][1:])
        candidates = [_Sizes(stride, 1), *(_Sizes(stride * k, 0) for k in (1, 2, 4)), _Sizes(1, 0, native)]
        training = self.model.training
        self.model.eval()
        try:
            for sizes in candidates:
                tried = native if sizes.resized else tuple(sizes.multiple * k + sizes.remainder for k in (5, 6))
                maps = _shapes(self._levels, tried)
                expected = [tuple((n - sizes.remainder) // r + sizes.remainder for n in tried) for r in reductions]
                if maps is not None and [shape[1:] for shape in maps] == expected:
                    return sizes, [shape[0] for shape in maps]
        finally:
            self.model.train(training)
        raise ValueError(
            f"`encoder`='{PREFIX}{self.name}' gives no maps of {native} pixels at the strides {reductions} that timm "
            "states; take another network"
        )


def _shapes(levels: Any, size: Sequence[int]) -> list[tuple[int, ...]] | None:
    """(C, h, w) of every level for images of a size; None if the network refuses it."""
    try:
        with torch.no_grad():
            maps = levels(torch.zeros(1, 3, *size))
    # timm's networks assert, or fail where shapes do not fit.
    except (AssertionError, RuntimeError, UnboundLocalError, ValueError):
        return None
    return [tuple(level.shape[1:]) for level in maps]


def _standardised(x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the channels, in at least float32."""
    x = at_least_float32(x)
    variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + _EPS)
