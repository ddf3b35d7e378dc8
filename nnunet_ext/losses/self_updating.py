"""The SM loss: Dice, cross-entropy and boundary terms with self-updating weights."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.losses.region_terms import Terms, region_terms

# Factors for (u_dice, u_ce, u_boundary), by the largest term and by whether the first of the other two is the larger.
_FACTORS = (
    ((1.0015, 1.0, 1.0005), (1.0015, 1.001, 1.0)),
    ((1.0, 1.0015, 1.0005), (1.001, 1.0015, 1.0)),
    ((1.0005, 1.0, 1.0015), (1.0, 1.001, 1.0015)),
)
_OTHERS = ((1, 2), (0, 2), (1, 0))


def output_weights(count: int, lowest: float = 0.0) -> list[float]:
    """nnU-Net's weights of `count` outputs: 1, 1/2, 1/4, ..., with `lowest` for the last, divided by their sum."""
    weights = [0.5**i for i in range(count)]
    if count > 1:
        weights[-1] = lowest
    return [w / sum(weights) for w in weights]


class SelfUpdatingLoss(nn.Module):
    """L = sum_i softplus(u_i) / sum_j softplus(u_j) * term_i over Dice, cross-entropy and boundary terms.

    In a training step (`self.training` and gradients enabled), u is updated before it is used: if Dice <
    `dice_threshold`, CE < `ce_threshold` and Boundary < `boundary_threshold`, u of the largest term is multiplied by
    1.0015 and u of the larger of the other two by 1.001 or 1.0005 (Dice largest: CE 1.001 or boundary 1.0005; CE
    largest: Dice 1.001 or boundary 1.0005; boundary largest: CE 1.001 or Dice 1.0005). Under DDP the decision uses the
    mean over ranks. The values u are the buffer `raw_weights`, which is part of the state dict but not trained by the
    optimiser.

    A class that is absent from a slice contributes the constant 1 there, so for small structures the boundary term may
    stay above its threshold, and u unchanged. Everything is computed in float32 with autocast off.

    Args:
        regions: Whether there are overlapping regions (sigmoid, binary cross-entropy) instead of classes (softmax).
        ignore_label: Class index whose voxels are left out of all terms. With `regions`, any value except None means
            that the target's last channel marks the voxels to ignore.
        deep_supervision_weights: Weight per output for lists of outputs, full resolution first; None: nnU-Net's 1, 1/2,
            1/4, ... with 0 for the last one, divided by their sum.
        dice_threshold: Threshold for the Dice term; the paper says that the three thresholds depend on the task.
        ce_threshold: Threshold for the cross-entropy term.
        boundary_threshold: Threshold for the boundary term.

    Shape:
        output (B, K, *P) and target (B, 1, *P) (with regions, one mask per channel), or lists of them; the result is a
        scalar.

    Raises:
        ValueError: for lists of different lengths, or weights of another length.

    Source:
        Huang et al., "SASAN: Spectrum-Axial Spatial Approach Networks for Medical Image Segmentation", L_SM.
    """

    raw_weights: Tensor
    _factors: Tensor
    _others: Tensor

    def __init__(
        self,
        regions: bool = False,
        ignore_label: int | None = None,
        deep_supervision_weights: Sequence[float] | None = None,
        dice_threshold: float = 0.6,
        ce_threshold: float = 0.2,
        boundary_threshold: float = 0.7,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.ignore_label = ignore_label
        self.deep_supervision_weights = deep_supervision_weights
        self.thresholds = (dice_threshold, ce_threshold, boundary_threshold)
        self.register_buffer("raw_weights", torch.ones(3))
        self.register_buffer("_factors", torch.tensor(_FACTORS).flatten(0, 1), persistent=False)
        self.register_buffer("_others", torch.tensor(_OTHERS), persistent=False)
        self.last_terms: Terms | None = None
        """Terms of the last call at full resolution, detached from the graph."""

    @property
    def weights(self) -> Tensor:
        """The current weights softplus(u) / sum softplus(u), in the order Dice, cross-entropy, boundary."""
        positive = F.softplus(self.raw_weights)
        return positive / positive.sum()

    def forward(self, output: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> Tensor:
        outputs = [output] if isinstance(output, Tensor) else list(output)
        targets = [target] if isinstance(target, Tensor) else list(target)
        if len(outputs) != len(targets):
            raise ValueError(f"{len(outputs)} outputs but {len(targets)} targets; one target is needed for each output")
        with torch.autocast(outputs[0].device.type, enabled=False):
            terms = self._terms(outputs[0], targets[0])
            self.last_terms = Terms(*(t.detach() for t in terms))
            if self.training and torch.is_grad_enabled():
                self._update(torch.stack(self.last_terms))
            weights = self.weights
            scales = self._output_weights(len(outputs))
            total = scales[0] * self._combine(terms, weights)
            for o, t, scale in zip(outputs[1:], targets[1:], scales[1:], strict=True):
                if scale != 0:
                    total = total + scale * self._combine(self._terms(o, t), weights)
            return total

    def extra_repr(self) -> str:
        dice, ce, boundary = self.thresholds
        return (
            f"regions={self.regions}, ignore_label={self.ignore_label}, dice_threshold={dice}, ce_threshold={ce}, "
            f"boundary_threshold={boundary}"
        )

    def _output_weights(self, count: int) -> Sequence[float]:
        if self.deep_supervision_weights is not None:
            if len(self.deep_supervision_weights) != count:
                raise ValueError(
                    f"`deep_supervision_weights` has {len(self.deep_supervision_weights)} entries for {count} outputs"
                )
            return self.deep_supervision_weights
        return output_weights(count)

    def _terms(self, logits: Tensor, target: Tensor) -> Terms:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        valid = None
        if self.ignore_label is not None and self.regions:
            valid, target = ~target[:, -1:].bool(), target[:, :-1]
        elif self.ignore_label is not None:
            valid = target != self.ignore_label
        return region_terms(logits, target, valid, self.regions)

    @staticmethod
    def _combine(terms: Terms, weights: Tensor) -> Tensor:
        return (torch.stack(tuple(terms)) * weights).sum()

    @torch.no_grad()
    def _update(self, terms: Tensor) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(terms)
            terms = terms / dist.get_world_size()
        # No branches on values, so that nothing waits for the GPU.
        terms = terms.to(self.raw_weights.dtype)
        largest = terms.argmax(keepdim=True)
        first, second = terms.gather(0, self._others.index_select(0, largest)[0]).unbind(0)
        factors = self._factors.index_select(0, 2 * largest + (first > second))[0]
        open_gate = torch.stack([term < limit for term, limit in zip(terms, self.thresholds, strict=True)]).all()
        self.raw_weights.mul_(torch.where(open_gate, factors, 1.0))
