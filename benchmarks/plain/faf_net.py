"""Naive reference implementation of FAF-Net, with the weights of a `FAFNet`.

The support is encoded anew for every query slice and class, features are upsampled to the mask's size, and ICM computes
keys and values at every position. Convolutions, norms and activations are PyTorch's, on contiguous tensors.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain.sasan import plain_convolutions
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.dilated_resnet import DilatedResNet
from nnunet_ext.networks.faf_net.encoder import FAFEncoder
from nnunet_ext.networks.faf_net.head import FAFHead, logit
from nnunet_ext.networks.faf_net.icm import icm_reference
from nnunet_ext.networks.faf_net.prototypes import masked_average_reference


class Losses(NamedTuple):
    """Losses of an episode, and the probability of foreground (1, 1, H, W)."""

    query: Tensor
    alignment: Tensor
    prototype: Tensor
    foreground: Tensor


def plain_forward(network: FAFNet, images: Tensor, masks: Tensor, queries: Tensor) -> Tensor:
    """Logits of query slices, background first, from one support slice per class.

    Shape:
        images (R, M, H, W), masks (R, H, W), queries (N, M, H, W) -> (N, R + 1, H, W)
    """
    results = []
    for query in queries:
        logits = [torch.zeros_like(query[:1])]
        for image, mask in zip(images, masks, strict=True):
            features, tau = plain_encoder(network.encoder, torch.stack((image, query)))
            p_s = masked_average_reference(features[:1], mask[None, None])[:, 0]
            p = _adapt(network.decoder, p_s, features[1:])
            foreground = _segment(features[1:], tau[1:], p, mask.shape)
            logits.append(logit(foreground.clamp(1e-6, 1 - 1e-6))[0])
        results.append(torch.cat(logits))
    return torch.stack(results)


def plain_encoder(encoder: FAFEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C, h, w) and threshold map (N, 1, h, w)."""
    x, backbone = images, encoder.backbone
    if isinstance(backbone, DilatedResNet):
        x = images.repeat(1, 3, 1, 1) if encoder.repeat else encoder.to_rgb(images)
        x = backbone.maxpool(F.relu(backbone.bn1(backbone.conv1(x))))
        x = backbone.layer3(backbone.layer2(backbone.layer1(x)))
    else:
        for pool, stage in zip(backbone.pools, backbone.stages, strict=True):
            x = plain_convolutions(stage, pool(x))
    return encoder.reduce(x), encoder.threshold(x)


def plain_episode(head: FAFHead, features: Tensor, tau: Tensor, mask: Tensor, query_mask: Tensor) -> Losses:
    """Losses for one class, one support image and one query image; only the first loss if nothing is predicted.

    Shape:
        features (2, C, h, w) and tau (2, 1, h, w), those of the support first; masks (1, H, W)
    """
    f_s, f_q = features.split(1)
    p_s = masked_average_reference(f_s, mask[None])[:, 0]
    p = _adapt(head, p_s, f_q)
    foreground = _segment(f_q, tau[1:], p, mask.shape[-2:])
    both = torch.cat((1 - foreground, foreground), 1)
    query_loss = F.nll_loss(both.log(), query_mask.long(), weight=both.new_tensor([0.1, 1]))
    predicted = both.argmax(1, keepdim=True)
    if not predicted.any():
        return Losses(query_loss, torch.zeros_like(query_loss), torch.zeros_like(query_loss), foreground)
    p_q = masked_average_reference(f_q, predicted)[:, 0]
    p_back = _adapt(head, p_q, f_s)
    back = _segment(f_s, tau[:1], p_back, mask.shape[-2:])
    alignment = F.nll_loss(torch.cat((1 - back, back), 1).log(), mask.long())
    return Losses(query_loss, alignment, (p - p_back).square().mean(), foreground)


def _adapt(head: FAFHead, prototype: Tensor, features: Tensor) -> Tensor:
    return icm_reference(head.icm, prototype[:, None], features)[:, 0] + prototype


def _segment(features: Tensor, tau: Tensor, prototype: Tensor, size: tuple[int, ...]) -> Tensor:
    s = 20 * nn.functional.cosine_similarity(features, prototype[..., None, None], dim=1)
    p = 1 - torch.sigmoid(0.5 * (-s[:, None] - tau))
    return F.interpolate(p, size, mode="bilinear", align_corners=True)
