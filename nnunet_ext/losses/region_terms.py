"""Dice, cross-entropy and boundary terms of the SM loss, batched over samples, classes and slices.

Source: Huang et al., "SASAN: Spectrum-Axial Spatial Approach Networks for Medical Image Segmentation". The authors
loop over slices and classes in Python. Every term is a function of a few sums per sample, class and slice, so one
pass over the voxels computes the sums, and another their gradients.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.ops.once import differentiable_once
from nnunet_ext.utils.torch_private import in_function_transform

_SMOOTH = 1e-5
_MAX_ALPHA = 0.8
_CHUNK_ELEMENTS = 1 << 19
"""Voxels times classes processed at a time on the CPU, so that temporaries stay in the cache."""


class Terms(NamedTuple):
    """The three terms of the SM loss, as scalars."""

    dice: Tensor
    cross_entropy: Tensor
    boundary: Tensor


def region_terms(logits: Tensor, target: Tensor, valid: Tensor | None = None, regions: bool = False) -> Terms:
    """The three terms, with p = softmax(logits) (regions: sigmoid) and one-hot truth t.

    * dice: mean over samples and classes of 1 - (2 sum(pt) + e) / (sum p + sum t + e).
    * cross_entropy: mean over voxels (regions: binary, over voxels and regions).
    * boundary: mean over classes and slices along the first spatial axis (2D: one slice) of
      (Z + Y - 2 X + e) / (Z + Y - (1 + alpha) X + e), sums over the batch: X = sum(pt), Y = sum(t^2), Z = sum(p^2),
      alpha = min(2 (1 - (C + e) / (T + e)) - 1, 0.8), T voxels of the class, C of them on its boundary (not all of
      the four in-plane neighbours belong to it). e = 1e-5.

    Args:
        logits: Raw network output, at least float32.
        target: Class indices, or with `regions` a mask for each region.
        valid: Mask of the voxels to include; None: all.
        regions: Whether there are overlapping regions instead of classes.

    Shape:
        logits (B, K, *P); target (B, 1, *P), with `regions` (B, K, *P); valid (B, 1, *P).
    """
    if in_function_transform():  # transforms of torch.func need PyTorch's own operators
        return region_terms_reference(logits, target, valid, regions)
    if logits.ndim == 4:  # one slice
        logits, target = logits.unsqueeze(2), target.unsqueeze(2)
        valid = None if valid is None else valid.unsqueeze(2)
    target = target.bool() if regions else target.long()
    overlap, mass, square, entropy, size, edge = _RegionSums.apply(logits, target, valid, regions)
    dice = 1 - (2 * overlap.sum(2) + _SMOOTH) / (mass.sum(2) + size.sum(2) + _SMOOTH)
    voxels = target[:, 0].numel() if valid is None else valid.sum().clamp_min(1)
    x, z, y, c = (i.sum(0) for i in (overlap, square, size, edge))
    alpha = (2 * (1 - (c + _SMOOTH) / (y + _SMOOTH)) - 1).clamp_max(_MAX_ALPHA)
    boundary = (z + y - 2 * x + _SMOOTH) / (z + y - (1 + alpha) * x + _SMOOTH)
    return Terms(dice.mean(), entropy / (voxels * (logits.shape[1] if regions else 1)), boundary.mean())


def region_terms_reference(logits: Tensor, target: Tensor, valid: Tensor | None = None, regions: bool = False) -> Terms:
    """Naive reference implementation of `region_terms`: loops over classes and slices, gradients by autograd."""
    if logits.ndim == 4:
        logits, target = logits.unsqueeze(2), target.unsqueeze(2)
        valid = None if valid is None else valid.unsqueeze(2)
    keep = torch.ones_like(target[:, :1], dtype=logits.dtype) if valid is None else valid.to(logits.dtype)
    classes = logits.shape[1]
    if regions:
        truth = target.to(logits.dtype) * keep
        p = logits.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(
            1, keepdim=True
        )
    else:
        inside = target.long().clamp(0, classes - 1)
        truth = torch.zeros_like(logits).scatter_(1, inside, 1) * keep
        p = logits.softmax(1)
        entropy = F.cross_entropy(logits, inside[:, 0], reduction="none")[:, None]
    entropy = (entropy * keep).sum() / (keep.sum().clamp_min(1) * (classes if regions else 1))
    p = p * keep
    overlap, total = (p * truth).sum((2, 3, 4)), (p + truth).sum((2, 3, 4))
    dice = (1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)).mean()
    cross = logits.new_tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    boundary, limit = logits.new_zeros(()), logits.new_tensor(_MAX_ALPHA)
    for class_truth, class_p in zip(truth.unbind(1), p.unbind(1), strict=True):
        for t, q in zip(class_truth.unbind(1), class_p.unbind(1), strict=True):
            neighbours = F.conv2d(t[:, None], cross, padding=1)[:, 0] * t
            on_edge = torch.where(neighbours == 5, 0, neighbours).count_nonzero().to(t.dtype)
            alpha = min(2 * (1 - (on_edge + _SMOOTH) / (t.sum() + _SMOOTH)) - 1, limit)
            x, y, z = (q * t).sum(), (t * t).sum(), (q * q).sum()
            boundary = boundary + (z + y - 2 * x + _SMOOTH) / (z + y - (1 + alpha) * x + _SMOOTH)
    return Terms(dice, entropy, boundary / (classes * logits.shape[2]))


class _RegionSums(torch.autograd.Function):
    """Sums per (sample, class, slice): p t, p, p^2, t, boundary voxels; and the total cross-entropy.

    Only the inputs are saved; the backward pass recomputes the probabilities, which costs less than storing them.
    """

    @staticmethod
    def forward(ctx, logits, target, valid, regions):
        ctx.save_for_backward(logits, target, valid)
        ctx.regions = regions
        shape = logits.shape[:3]
        overlap, mass, square, size, edge = (logits.new_zeros(shape) for _ in range(5))
        entropy = logits.new_zeros(())
        for part in _slices(logits):
            z, keep = logits[:, :, part], None if valid is None else valid[:, :, part]
            inside = _one_hot(target[:, :, part], keep, z.shape[1], regions)
            truth = inside.to(z.dtype)
            p, cross_entropy = _probabilities(z, target[:, :, part], keep, regions)
            entropy += cross_entropy
            for sums, values in ((overlap, p * truth), (mass, p), (square, p * p), (size, truth)):
                sums[:, :, part] = values.sum((3, 4))
            edge[:, :, part] = size[:, :, part] - _interior(inside).sum((3, 4))
        ctx.mark_non_differentiable(size, edge)
        return overlap, mass, square, entropy, size, edge

    @staticmethod
    @differentiable_once("region_sums")
    def backward(ctx, *grads):
        logits, target, valid = ctx.saved_tensors
        g_overlap, g_mass, g_square = (g[..., None, None] for g in grads[:3])
        g_entropy = grads[3]
        out = torch.empty_like(logits)
        for part in _slices(logits):
            z, keep = logits[:, :, part], None if valid is None else valid[:, :, part]
            truth = _one_hot(target[:, :, part], keep, z.shape[1], ctx.regions).to(z.dtype)
            p, _ = _probabilities(z, None, keep, ctx.regions)
            # Derivative of the sums by p, then through the softmax or the sigmoid; masked voxels have p = t = 0.
            grad = torch.addcmul(g_mass[:, :, part], p, g_square[:, :, part], value=2)
            grad.addcmul_(g_overlap[:, :, part], truth)
            if ctx.regions:
                grad.mul_(p * (1 - p))
            else:
                grad -= (p * grad).sum(1, keepdim=True)
                grad.mul_(p)
            out[:, :, part] = grad.add_(p.sub_(truth).mul_(g_entropy))
        return out, None, None, None


def _slices(logits: Tensor) -> Iterator[slice]:
    depth = logits.shape[2]
    step = depth
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        step = max(1, _CHUNK_ELEMENTS * depth // logits.numel())
    return (slice(start, start + step) for start in range(0, depth, step))


def _one_hot(target: Tensor, keep: Tensor | None, classes: int, regions: bool) -> Tensor:
    if not regions:
        target = target == torch.arange(classes, device=target.device).view(1, -1, 1, 1, 1)
    return target if keep is None else target & keep


def _probabilities(
    z: Tensor, target: Tensor | None, keep: Tensor | None, regions: bool
) -> tuple[Tensor, Tensor | float]:
    """Probabilities, 0 where masked, and the summed cross-entropy if there is a target."""
    entropy: Tensor | float = 0.0
    if regions:
        p = z.sigmoid()
        if target is not None:
            each = F.softplus(z) - z * target
            entropy = each.sum() if keep is None else (each * keep).sum()
    else:
        top = z.amax(1, keepdim=True)
        p = (z - top).exp_()
        total = p.sum(1, keepdim=True)
        p /= total
        if target is not None:
            chosen = z.gather(1, target if keep is None else target.where(keep, 0))
            each = top + total.log() - chosen
            entropy = each.sum() if keep is None else (each * keep).sum()
    if keep is not None:
        p *= keep
    return p, entropy


def _interior(truth: Tensor) -> Tensor:
    """Voxels whose four in-plane neighbours all belong to the class; voxels at the image's edge never count."""
    inside = truth.clone()
    inside[..., 1:, :] &= truth[..., :-1, :]
    inside[..., :-1, :] &= truth[..., 1:, :]
    inside[..., 1:] &= truth[..., :-1]
    inside[..., :-1] &= truth[..., 1:]
    inside[..., [0, -1]] = False
    inside[..., [0, -1], :] = False
    return inside
