"""Batches and steps that would spoil a training: values that are not finite, and labels without an output."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MAX_SKIPPED = 10
"""Steps in a row without finite gradients after which a training has lost its way."""


def not_finite(batch: Mapping[str, Any]) -> list[int]:
    """Samples of a batch whose images have NaN or infinite values."""
    found: set[int] = set()
    for key, value in batch.items():
        # Episodes have several kinds of images; targets are integers.
        if not isinstance(value, Tensor) or not value.is_floating_point() or not (key == "data" or "images" in key):
            continue
        # One sum is cheaper than a mask, and finite unless a value is not (or the sum overflows).
        if not torch.isfinite(value.sum()):
            finite = torch.isfinite(value).flatten(1).all(1)
            found |= {i for i, good in enumerate(finite.tolist()) if not good}
    return sorted(found)


def unknown_labels(batch: Mapping[str, Any], highest: int) -> tuple[list[int], list[int]]:
    """Labels of a batch's target for which the network has no output.

    Args:
        batch: A batch of nnU-Net's; one without a target, of episodes for instance, has none.
        highest: Highest label that the loss knows, the ignore label included.

    Returns:
        Samples that have such labels, and the labels.
    """
    target = batch.get("target")
    finest = target[0] if isinstance(target, list | tuple) else target
    if not isinstance(finest, Tensor) or not finest.numel():
        return [], []
    if int(finest.min()) >= 0 and int(finest.max()) <= highest:
        return [], []
    wrong = (finest < 0) | (finest > highest)
    samples = wrong.flatten(1).any(1).nonzero().flatten().tolist()
    return samples, finest[wrong].unique().int().tolist()


def bad_cases(dataset: Any, cases: Iterable[str]) -> list[str]:
    """Those of nnU-Net's preprocessed cases that have NaN or infinite voxels."""
    import numpy as np

    return [case for case in sorted(set(cases)) if not np.isfinite(np.asarray(dataset.load_case(case)[0][:])).all()]


class StepGuard:
    """Skips optimiser steps whose gradients are not finite, which would make all weights NaN for good.

    On CUDA nnU-Net's GradScaler does that, and expects it now and then in half precision. In full precision there is
    no such excuse: it is said in the log, and after `MAX_SKIPPED` in a row the training ends.

    Args:
        optimizer: Whose steps to watch.
        log: For a line of text.
        epoch: The number of the epoch, for the messages.
    """

    def __init__(self, optimizer: Optimizer, log: Callable[[str], None], epoch: Callable[[], int]) -> None:
        self._log, self._epoch, self._skipped = log, epoch, 0
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if _all_finite([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]):
            self._skipped = 0
            return
        optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is left as it is
        self._skipped += 1
        self._log(
            f"Loss or gradients that are not finite in epoch {self._epoch()}: step skipped ({self._skipped} in a row)"
        )
        if self._skipped >= MAX_SKIPPED:
            raise RuntimeError(
                f"the loss was not finite in {self._skipped} steps in a row in epoch {self._epoch()}, with finite "
                "images: the training has diverged. The weights are as they were before; the last checkpoint is whole. "
                "Lower the learning rate (initial_lr of the trainer), or go on from the checkpoint with --c"
            )


def _all_finite(gradients: list[Tensor]) -> bool:
    if not gradients:
        return True
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all())
