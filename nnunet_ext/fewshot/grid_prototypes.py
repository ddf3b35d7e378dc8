"""A training-free baseline: pixels take the class of the nearest prototype of the support, by cosine similarity.

    P = sigmoid(20 (max_k cos(F, f_k) - max_k cos(F, b_k)))

F are the encoder's features of the query, f_k and b_k local averages of its features of the support slice over the
foreground and the background, on a grid of windows; the whole foreground's average is one of the f_k.

Source: Ouyang et al., "Self-supervision with superpixels: training few-shot medical image segmentation without
annotation", ECCV 2020 (ALPNet: the grid, the shares, the factor 20). Deviation: the nearest prototype counts, where
ALPNet weights all of a class by their similarity.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.adaptive_filter import resize
from nnunet_ext.networks.faf_net.head import MIN_PROBABILITY
from nnunet_ext.networks.faf_net.prototypes import masked_average

_GRID = 8
"""Windows along each axis; ALPNet's are 4 x 4 of 32 x 32 positions."""
_SHARE = 0.95
"""Share of a window that must belong to a class."""
_SCALE = 20


class GridSupport(NamedTuple):
    """K prototypes for each of R classes; the leading axes are those of the images that they are for.

    Attributes:
        prototypes: Features, (..., R, K, C).
        foreground: Which of them belong to the class, (..., R, K).
        background: Which belong to its background, (..., R, K).
    """

    prototypes: Tensor
    foreground: Tensor
    background: Tensor


class GridPrototypes(nn.Module):
    """Segments with the features of a FAF-Net's encoder alone, before FAF-Net's own projection of them.

    It takes a network's place in `FewShotModel`.

    Args:
        network: The network, whose encoder is used as it is.
    """

    def __init__(self, network: FAFNet) -> None:
        super().__init__()
        self.encoder, self.slices_per_chunk = network.encoder, network.slices_per_chunk

    def encode_support(self, images: Tensor, masks: Tensor) -> GridSupport:
        """Prototypes of the classes from the slices that show them.

        Shape:
            (N, M, H, W), (N, R, H, W) -> prototypes (R, K, C), K = N (windows + 1)
        """
        features = at_least_float32(self.encoder.describe(images))
        whole = masked_average(features, masks.to(features.dtype))  # (N, R, C)
        shown = masks.flatten(2).any(2)  # (N, R)
        of_masks = GridSupport(*(t.transpose(0, 1)[:, :, None].flatten(1, 2) for t in (whole, shown, shown & False)))
        return GridSupport(*(torch.cat(t, 1) for t in zip(windows(features, masks), of_masks, strict=True)))

    def segment(self, images: Tensor, support: GridSupport) -> Tensor:
        """Probabilities of every class against its own background.

        Shape:
            (N, M, H, W), prototypes (N, R, K, C) -> (N, R, H, W)
        """
        features = at_least_float32(self.encoder.describe(images))
        return nearest(features, support, images.shape[-2:])


def windows(features: Tensor, masks: Tensor) -> GridSupport:
    """Averages of the features over the windows of the grid.

    Shape:
        (N, C, h, w), (N, R, H, W) -> prototypes (R, K, C), K = N windows
    """
    grid = (min(_GRID, features.shape[-2]), min(_GRID, features.shape[-1]))
    local = F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)[:, None]  # (N, 1, G, C)
    shares = F.adaptive_avg_pool2d(masks.to(features.dtype), grid).flatten(2)  # (N, R, G)
    shown = masks.flatten(2).any(2)[..., None]
    parts = (local.expand(-1, masks.shape[1], -1, -1), (shares >= _SHARE) & shown, (shares <= 1 - _SHARE) & shown)
    return GridSupport(*(t.transpose(0, 1).flatten(1, 2) for t in parts))


def nearest(features: Tensor, support: GridSupport, size: Sequence[int]) -> Tensor:
    """Probabilities by the nearest prototypes of the class and of its background.

    Shape:
        (N, C, h, w), prototypes (N, R, K, C) -> (N, R, *size)
    """
    unit = F.normalize(features.flatten(2), dim=1)
    cosine = F.normalize(support.prototypes, dim=-1) @ unit[:, None]  # (N, R, K, h w)
    of_class, of_background = (
        torch.where(kind[..., None], cosine, -1).amax(2) for kind in (support.foreground, support.background)
    )
    difference = (of_class - of_background).unflatten(-1, features.shape[-2:])
    return torch.sigmoid(_SCALE * resize(difference, size)).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
