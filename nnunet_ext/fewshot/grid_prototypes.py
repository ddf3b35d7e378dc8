"""Segmentation by the nearest local prototype of the support, by cosine similarity, as in ALPNet.

    P = sigmoid(20 (max_k cos(F, f_k) - max_k cos(F, b_k)))

F are features of the query. f_k and b_k are means of the features of the support slice over the windows of a grid that
lie in the class and in its background; the mean over the whole class is one of the f_k. The features are those of the
encoder as it is, a baseline that needs no training, or those that FAF-Net has learned, in place of its adapted
prototype and its threshold, which is an addition to its paper.

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
    """Local prototypes of a FAF-Net's features; it takes the network's place in `FewShotModel`.

    Args:
        network: The network, whose encoder is used as it is.
        projected: Whether F are FAF-Net's features, which it has learned, and not the encoder's before that projection.
    """

    def __init__(self, network: FAFNet, projected: bool = False) -> None:
        super().__init__()
        self.encoder, self.slices_per_chunk = network.encoder, network.slices_per_chunk
        self.projected = projected

    def _features(self, images: Tensor) -> Tensor:
        described = self.encoder.describe(images)
        return at_least_float32(self.encoder.project(described)[0] if self.projected else described)

    def encode_support(self, images: Tensor, masks: Tensor) -> GridSupport:
        """Prototypes of the classes from the slices that show them.

        Shape:
            (N, M, H, W), (N, R, H, W) -> prototypes (R, K, C), K = N (windows + 1)
        """
        features = self._features(images)
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
        features = self._features(images)
        unit = F.normalize(features.flatten(2), dim=1)
        cosine = F.normalize(support.prototypes, dim=-1) @ unit[:, None]  # (N, R, K, h w)
        # A class without prototypes is nowhere: its value is below every cosine.
        of_class = torch.where(support.foreground[..., None], cosine, -2).amax(2)
        of_background = torch.where(support.background[..., None], cosine, -1).amax(2)
        difference = (of_class - of_background).unflatten(-1, features.shape[-2:])
        probabilities = torch.sigmoid(_SCALE * resize(difference, images.shape[-2:]))
        return probabilities.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
