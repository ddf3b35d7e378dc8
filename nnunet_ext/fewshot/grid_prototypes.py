"""A training-free baseline: pixels take the class of the nearest prototype of the support, by cosine similarity.

    P = sigmoid(20 (max_k cos(F, f_k) - max_k cos(F, b_k)))

F are the encoder's features of the query, f_k and b_k local averages of its features of the support slice over the
foreground and the background, on a grid of windows; the whole foreground's average is one of the f_k.

Source: Ouyang et al., "Self-supervision with superpixels: training few-shot medical image segmentation without
annotation", ECCV 2020 (ALPNet: the grid, the shares, the factor 20). Deviation: the nearest prototype counts, where
ALPNet weights all of a class by their similarity.
"""

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
        masks = masks.to(features.dtype)
        grid = (min(_GRID, features.shape[-2]), min(_GRID, features.shape[-1]))
        local = F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)[:, None]  # (N, 1, G, C)
        whole = masked_average(features, masks)[:, :, None]  # (N, R, 1, C)
        shares = F.adaptive_avg_pool2d(masks, grid).flatten(2)  # (N, R, G)
        shown = masks.flatten(2).any(2)[..., None]
        prototypes = torch.cat((local.expand(-1, masks.shape[1], -1, -1), whole), 2)
        foreground = F.pad(shares >= _SHARE, (0, 1), value=True) & shown
        background = F.pad(shares <= 1 - _SHARE, (0, 1), value=False) & shown
        return GridSupport(*(t.transpose(0, 1).flatten(1, 2) for t in (prototypes, foreground, background)))

    def segment(self, images: Tensor, support: GridSupport) -> Tensor:
        """Probabilities of every class against its own background.

        Shape:
            (N, M, H, W), prototypes (N, R, K, C) -> (N, R, H, W)
        """
        features = at_least_float32(self.encoder.describe(images))
        unit = F.normalize(features.flatten(2), dim=1)
        cosine = F.normalize(support.prototypes, dim=-1) @ unit[:, None]  # (N, R, K, h w)
        nearest = [
            torch.where(kind[..., None], cosine, -1).amax(2) for kind in (support.foreground, support.background)
        ]
        difference = (nearest[0] - nearest[1]).unflatten(-1, features.shape[-2:])
        probabilities = torch.sigmoid(_SCALE * resize(difference, images.shape[-2:]))
        return probabilities.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
