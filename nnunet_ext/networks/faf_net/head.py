"""FAF-Net after its encoder: prototypes, ICM, prediction, and the losses of an episode, all on feature maps.

Source: Cheng et al., "FAF-Net" (few-shot medical image segmentation); see `nnunet_ext.networks.faf_net`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ext.networks.chunks import in_chunks
from nnunet_ext.networks.faf_net.adaptive_filter import resize
from nnunet_ext.networks.faf_net.icm import ICM
from nnunet_ext.networks.faf_net.prototypes import foreground_probability, masked_average
from nnunet_ext.utils.torch_private import FakeTensor

MIN_PROBABILITY = 1e-6
"""Lower bound of probabilities (1 minus it is the upper bound); a class without a prototype has it everywhere."""
UNLABELLED = -1
"""Value in support masks for pixels with unknown labels (nnU-Net's ignore label), left out of prototypes and losses."""
THRESHOLDS = ("query", "support")
_CLASS_WEIGHTS = (0.1, 1.0)
"""Weights of background and foreground in the query's loss."""


class Support(NamedTuple):
    """Information from a support about R classes; the leading axes are those of the episodes or images it is for.

    Attributes:
        prototypes: Prototypes of the classes, (..., R, C).
        thresholds: Mean tau of the support images, (..., R); used only with `threshold_from="support"`.
        valid: Whether any support image shows the class, (..., R).
    """

    prototypes: Tensor
    thresholds: Tensor
    valid: Tensor


class Episode(NamedTuple):
    """Result of E episodes with Q query images and R classes each.

    Attributes:
        probabilities: P of every class, (E, Q, R, H, W).
        query_loss: Cross-entropy of P with weights 0.1 for background and 1 for foreground, divided by the sum of these
            weights; 0 without query masks.
        alignment_loss: Cross-entropy of the support, segmented with the query's prediction as its support.
        prototype_loss: Mean squared difference between the adapted prototypes of the two directions.
    """

    probabilities: Tensor
    query_loss: Tensor
    alignment_loss: Tensor
    prototype_loss: Tensor

    @property
    def logits(self) -> Tensor:
        """log(P / (1 - P)), (E, Q, R, H, W)."""
        return logit(self.probabilities)


class FAFHead(nn.Module):
    """p = ICM(p_s, F) + p_s;  P = 1 - sigmoid(0.5 (-20 cos(F, p) - tau)), upsampled; see `ICM` and `AFF`.

    Args:
        rows: Number of classes whose prototypes can be stored.
        channels: C.
        heads: m, heads of ICM.
        grid: (h, w) of the features for which AFF's filters are made.
        regions: Whether no output is background; see `PrototypeBank`.
        threshold_from: ``"query"``: tau is the map of the segmented image; ``"support"``: tau is one number per class,
            the mean over the maps of the images that the prototype comes from.
        slices_per_chunk: Images that are segmented at a time in an episode; several chunks are checkpointed.
        deep_supervision: nnU-Net's switch; there is a single output either way.

    Raises:
        ValueError: for an unknown `threshold_from`.
    """

    def __init__(
        self,
        rows: int,
        channels: int,
        heads: int,
        grid: Sequence[int],
        *,
        regions: bool = False,
        threshold_from: str = "query",
        slices_per_chunk: int = 8,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if threshold_from not in THRESHOLDS:
            raise ValueError(f"unknown `threshold_from` {threshold_from!r}; known: {', '.join(THRESHOLDS)}")
        self.threshold_from = threshold_from
        self.slices_per_chunk = slices_per_chunk
        self.deep_supervision = deep_supervision
        self.icm = ICM(channels, heads, grid)
        # nnU-Net's -pretrained_weights skips this name, and prototypes belong to the classes of one dataset.
        self.seg_layers = PrototypeBank(rows, channels, regions)

    def segment(self, features: Tensor, tau: Tensor, support: Support, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Segments images, each with its own support.

        Args:
            features: Features of the images.
            tau: Threshold maps of the images.
            support: Support of each image.
            size: Size of the result in pixels.

        Shape:
            (N, C, h, w), (N, 1, h, w), prototypes (N, R, C) -> probabilities (N, R, *size), clamped, and adapted
            prototypes p (N, R, C)
        """
        prototypes, thresholds, valid = support
        adapted = self.icm(prototypes, features) + prototypes
        threshold = tau if self.threshold_from == "query" else thresholds[..., None, None]
        probabilities = torch.where(valid[..., None, None], foreground_probability(features, adapted, threshold), 0)
        return resize(probabilities, size).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY), adapted

    def segment_features(
        self, support_features: Tensor, support_mask: Tensor, query_features: Tensor, query_threshold: Tensor
    ) -> Tensor:
        """Segments one class in one query image from one support image, for each sample.

        Args:
            support_features: F_s.
            support_mask: Foreground of the support images; the result has its size.
            query_features: F_q.
            query_threshold: tau of the query images.

        Shape:
            (B, C, h, w), (B, H, W), (B, C, h, w), (B, 1, h, w) -> (B, 2, H, W), background and foreground
        """
        masks = support_mask[:, None, None]
        support = summarise(*shots(support_features[:, None], query_threshold[:, None], masks))
        foreground, _ = self.segment(query_features, query_threshold, support, support_mask.shape[-2:])
        return torch.cat((1 - foreground, foreground), 1)

    def episode(
        self,
        *,
        support_features: Tensor,
        support_tau: Tensor,
        support_masks: Tensor,
        query_features: Tensor,
        query_tau: Tensor,
        query_size: Sequence[int],
        query_masks: Tensor | None = None,
    ) -> Episode:
        """Runs E episodes on features, each with S support and Q query images and R classes; see
        `FAFNet.forward_episode`.

        Shape:
            support (E, S, C, h, w), (E, S, 1, h, w), (E, S, R, H, W); query (E, Q, C, h, w), (E, Q, 1, h, w),
            (E, Q, R, *query_size)
        """
        (e, s, r), q = support_masks.shape[:3], query_features.shape[1]
        of_slices = shots(support_features, support_tau, support_masks)
        support = summarise(*of_slices)
        per_query = Support(*(t[:, None].expand(e, q, *t.shape[1:]).flatten(0, 1) for t in support))
        probabilities, adapted = self._segment_chunks(
            query_features.flatten(0, 1), query_tau.flatten(0, 1), per_query, query_size
        )
        probabilities = probabilities.unflatten(0, (e, q))

        # Reverse direction: every query image, with its prediction, supports the segmentation of every support image.
        predicted = probabilities.detach() > 0.5
        backwards = shots(query_features, query_tau, predicted)
        per_shot = Support(
            *(t.flatten(1, 2)[:, None].expand(e, s, q * r, *t.shape[3:]).flatten(0, 1) for t in backwards)
        )
        returned, readapted = self._segment_chunks(
            support_features.flatten(0, 1), support_tau.flatten(0, 1), per_shot, support_masks.shape[-2:]
        )
        returned = returned.unflatten(1, (q, r)).unflatten(0, (e, s))
        # Alignment is undefined where nothing is predicted and for support images without the class.
        weights = (backwards.valid[:, None] & of_slices.valid[:, :, None]).to(returned.dtype)  # (E, S, Q, R)
        possible = support.valid.sum() * q
        labelled = (support_masks >= 0).to(returned.dtype)[:, :, None]
        alignment = _cross_entropy(returned, support_masks[:, :, None], labelled)
        alignment = alignment / labelled.sum((-2, -1)).clamp_min(1)
        squares = (adapted.view(e, 1, q, r, -1) - readapted.view(e, s, q, r, -1)).square().mean(-1)
        weights = weights / of_slices.valid.sum(1).clamp_min(1)[:, None, None] / possible.clamp_min(1)

        query_loss = probabilities.new_zeros(())
        if query_masks is not None:
            background, foreground = _CLASS_WEIGHTS
            of_pixels = torch.where(query_masks > 0.5, foreground, background).to(probabilities.dtype)
            valid = support.valid[:, None]
            total = (of_pixels.sum((-2, -1)) * valid).sum().clamp_min(MIN_PROBABILITY)
            query_loss = (_cross_entropy(probabilities, query_masks, of_pixels) * valid).sum() / total
        return Episode(probabilities, query_loss, (weights * alignment).sum(), (weights * squares).sum())

    def _segment_chunks(
        self, features: Tensor, tau: Tensor, support: Support, size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        def segment(f: Tensor, t: Tensor, *of_images: Tensor) -> tuple[Tensor, Tensor]:
            return self.segment(f, t, Support(*of_images), size)

        probabilities, adapted = in_chunks(self, segment, self.slices_per_chunk, features, tau, *support)
        return probabilities, adapted


class PrototypeBank(nn.Module):
    """The support stored in a trained network, one row per output, in persistent buffers.

    Whether output 0 is background, which has no prototype, is a buffer too, because code that builds a network for
    prediction knows only the number of outputs.

    Args:
        rows: K, number of outputs of the network.
        channels: C.
        regions: Whether no output is background (region-based training).
    """

    prototypes: Tensor
    thresholds: Tensor
    prototype_valid: Tensor
    has_background: Tensor

    def __init__(self, rows: int, channels: int, regions: bool) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(rows, channels))
        self.register_buffer("thresholds", torch.zeros(rows))
        self.register_buffer("prototype_valid", torch.zeros(rows, dtype=torch.bool))
        self.register_buffer("has_background", torch.tensor(not regions))

    @torch.no_grad()
    def store(self, support: Support) -> None:
        """Stores the support of all classes except background, in place."""
        first = self.prototypes.shape[0] - support.prototypes.shape[0]
        for kept, new in zip((self.prototypes, self.thresholds, self.prototype_valid), support, strict=True):
            kept.zero_()
            kept[first:].copy_(new)

    def support(self) -> Support:
        """The stored support of all rows; a background row is not valid.

        Raises:
            RuntimeError: if no support is stored. A compiled network, which cannot branch on values, returns NaN
                instead.
        """
        present = self.prototype_valid.any()
        known = not (torch.compiler.is_compiling() or isinstance(present, FakeTensor))
        if known and not bool(present):
            raise RuntimeError(
                "FAF-Net has no support yet: call set_support(images, masks) with labelled slices, or load weights "
                "that were saved after it"
            )
        return Support(self.prototypes, self.thresholds, self.prototype_valid)

    def outputs(self, probabilities: Tensor) -> Tensor:
        """(N, K, H, W) probabilities -> logits; 0 for background, NaN without a support."""
        rows = torch.arange(probabilities.shape[1], device=probabilities.device)
        present = self.prototype_valid.any()
        fixed = (self.has_background & (rows == 0)) | ~present
        value = torch.where(present, 0.0, torch.nan).to(probabilities.dtype)
        return torch.where(fixed[:, None, None], value, logit(probabilities))


def shots(features: Tensor, tau: Tensor, masks: Tensor) -> Support:
    """Prototypes and thresholds of every support image separately; `UNLABELLED` pixels do not contribute.

    Shape:
        (E, S, C, h, w), (E, S, 1, h, w), (E, S, R, H, W) -> (E, S, R, C), (E, S, R), (E, S, R)
    """
    e, s, r = masks.shape[:3]
    masks = masks * (masks > 0)
    prototypes = masked_average(features.flatten(0, 1), masks.flatten(0, 1)).view(e, s, r, -1)
    thresholds = tau.to(prototypes.dtype).mean((-3, -2, -1))[..., None].expand(e, s, r)
    return Support(prototypes, thresholds, masks.sum((-2, -1)) > 0)


def summarise(prototypes: Tensor, thresholds: Tensor, valid: Tensor) -> Support:
    """Mean over the support images that show a class: (..., S, R, C) and (..., S, R) -> (..., R, C) and (..., R)."""
    weights = valid.to(prototypes.dtype)
    weights = weights / weights.sum(-2, keepdim=True).clamp_min(1)
    return Support((weights[..., None] * prototypes).sum(-3), (weights * thresholds).sum(-2), valid.any(-2))


def logit(probabilities: Tensor) -> Tensor:
    """log(P / (1 - P)) of probabilities that are already clamped."""
    return torch.log(probabilities) - torch.log1p(-probabilities)


def _cross_entropy(probabilities: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum over the pixels of the negative log-probability of the mask's label.

    Maps are large, so they are read and written as rarely as possible: one logarithm per pixel, and a sum that never
    writes its products. In float32, which autocast would take from a product.

    Shape:
        (..., H, W), (..., H, W), (..., H, W) -> (...)
    """
    with torch.autocast(probabilities.device.type, enabled=False):
        foreground = (masks > 0.5).to(probabilities.dtype)
        of_label = torch.addcmul(1 - foreground, probabilities, 2 * foreground - 1)  # P, in the background 1 - P
        return -(weights.flatten(-2)[..., None, :] @ of_label.log().flatten(-2)[..., None])[..., 0, 0]
