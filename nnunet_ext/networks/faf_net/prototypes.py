"""Prototypes for few-shot segmentation: one vector per class, and the probability of pixels similar to it.

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation), after ADNet.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.blocks.channelwise import at_least_float32

_SCALE = 20
_COSINE_EPS = 1e-8
_AREA_EPS = 1e-5


def masked_average(features: Tensor, masks: Tensor) -> Tensor:
    """p = sum_x m(x) U(F)(x) / (sum_x m(x) + 1e-5), U: bilinear upsampling to the masks' size, corners aligned.

    The masks are downsampled by the transpose of U, which gives the same sums without C channels at full resolution;
    `masked_average_reference` is the naive reference implementation. Computed in at least float32, with gradients for
    features and masks.

    Shape:
        features (B, C, h, w), masks (B, R, H, W) -> (B, R, C)
    """
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        masks = masks.to(features.dtype)
        rows, columns = (
            _upsampling(source, target, features)
            for source, target in zip(features.shape[-2:], masks.shape[-2:], strict=True)
        )
        weights = rows @ (masks @ columns.T)  # (B, R, h, w)
        sums = weights.flatten(2) @ features.flatten(2).transpose(1, 2)
        return sums / (masks.sum((-2, -1)) + _AREA_EPS)[..., None]


def masked_average_reference(features: Tensor, masks: Tensor) -> Tensor:
    """Naive reference implementation of `masked_average`: upsamples the features, then averages them."""
    upsampled = F.interpolate(features, tuple(masks.shape[-2:]), mode="bilinear", align_corners=True)
    masks = masks.to(features.dtype)
    sums = (upsampled[:, None] * masks[:, :, None]).sum((-2, -1))
    return sums / (masks.sum((-2, -1)) + _AREA_EPS)[..., None]


def _upsampling(source: int, target: int, like: Tensor) -> Tensor:
    """Matrix (source, target) of linear upsampling along one axis, with aligned corners."""
    identity = torch.eye(source, dtype=like.dtype, device=like.device)
    return F.interpolate(identity[None], target, mode="linear", align_corners=True)[0]


def foreground_probability(features: Tensor, prototypes: Tensor, threshold: Tensor) -> Tensor:
    """P = 1 - sigmoid(0.5 (-s - tau)), s = 20 cos(F, p), in at least float32.

    Args:
        features: F.
        prototypes: p, one per class.
        threshold: tau, a map or one number per class.

    Shape:
        features (B, C, h, w), prototypes (B, R, C), threshold (B, 1, h, w) or (B, R, 1, 1) -> (B, R, h, w)
    """
    with torch.autocast(features.device.type, enabled=False):
        features, prototypes = at_least_float32(features), at_least_float32(prototypes)
        unit = F.normalize(features.flatten(2), dim=1, eps=_COSINE_EPS)
        cosine = F.normalize(prototypes, dim=-1, eps=_COSINE_EPS) @ unit
        return torch.sigmoid(0.5 * (_SCALE * cosine.unflatten(-1, features.shape[-2:]) + threshold))
