"""FAF-Net's adapted prototype against local prototypes of the support's background. This is an addition to the paper.

    P = sigmoid(20 (max(cos(F, p), max_k cos(F, f_k)) - max_k cos(F, b_k)))

F are the network's features of the query, and p is the prototype that ICM has adapted to it. f_k and b_k are means of
its features of the support slice over windows of a grid that lie in the class and in its background (see `windows`). In
FAF-Net itself, a threshold alone decides whether a position is similar enough to p.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ext.blocks.channelwise import at_least_float32
from nnunet_ext.fewshot.grid_prototypes import GridSupport, nearest, windows
from nnunet_ext.fewshot.model import FewShotModel
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.head import MIN_PROBABILITY, shots, summarise


class LocalSupport(NamedTuple):
    """The class's own prototype and the local ones; the leading axes are those of the images that they are for.

    Attributes:
        whole: Prototype of the class, (..., R, C).
        valid: Whether any support slice shows the class, (..., R).
        prototypes: Local ones, (..., R, K, C).
        foreground: Which of them belong to the class, (..., R, K).
        background: Which belong to its background, (..., R, K).
    """

    whole: Tensor
    valid: Tensor
    prototypes: Tensor
    foreground: Tensor
    background: Tensor


class LocalBackground(nn.Module):
    """A trained FAF-Net that decides by local prototypes; it takes the network's place in `FewShotModel`.

    Args:
        network: The network.
    """

    def __init__(self, network: FAFNet) -> None:
        super().__init__()
        self.network, self.slices_per_chunk = network, network.slices_per_chunk

    def encode_support(self, images: Tensor, masks: Tensor) -> LocalSupport:
        """Prototypes of the classes from the slices that show them.

        Shape:
            (N, M, H, W), (N, R, H, W) -> whole (R, C), prototypes (R, K, C)
        """
        features, tau = self.network.encoder(images)
        support = summarise(*(t[0] for t in shots(features[None], tau[None], masks[None])))
        return LocalSupport(support.prototypes, support.valid, *windows(at_least_float32(features), masks))

    def segment(self, images: Tensor, support: LocalSupport) -> Tensor:
        """Probabilities of every class against its own background.

        Shape:
            (N, M, H, W), whole (N, R, C) -> (N, R, H, W)
        """
        features, _ = self.network.encoder(images)
        whole, valid, *local = support
        adapted = self.network.decoder.adapt(whole, features)[:, :, None]
        of_class = GridSupport(adapted, valid[..., None], (valid & False)[..., None])
        together = GridSupport(*(torch.cat(t, 2) for t in zip(of_class, local, strict=True)))
        probabilities = nearest(at_least_float32(features), together, images.shape[-2:])
        return torch.where(valid[..., None, None], probabilities, MIN_PROBABILITY)


def with_local_background(model: FewShotModel) -> FewShotModel:
    """The same model, without its supports, that decides by local prototypes."""
    result = copy.copy(model)
    result.networks = [LocalBackground(network).eval() for network in model.networks]
    result.supports = []
    return result
