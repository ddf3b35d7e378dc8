"""Checks for batches and steps that would spoil a training: NaN or infinite values, unknown labels, divergence."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nnunet_ext.utils.torch_private import all_finite

MAX_SKIPPED = 10
"""Steps in a row without finite gradients after which a training counts as diverged."""
MAX_SCALING = 20
"""As `MAX_SKIPPED`, under a GradScaler, for an epoch without any step. A scaler begins at 2^16 and halves its scale at
every step that it skips: after 20 of them unscaled gradients overflow too."""


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
    """Finds labels of a batch's target for which the network has no output.

    Args:
        batch: A batch of nnU-Net's; a batch without a target, for instance of episodes, has no unknown labels.
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
    """Preprocessed cases of nnU-Net that have NaN or infinite voxels."""
    import numpy as np

    return [case for case in sorted(set(cases)) if not np.isfinite(np.asarray(dataset.load_case(case)[0][:])).all()]


class StepGuard:
    """Skips optimiser steps whose gradients are not finite, and ends a training that no longer takes steps.

    A step with NaN gradients would make all weights NaN for good. In full precision such a step is an error: the log
    reports it, and after `MAX_SKIPPED` in a row the training ends. In half precision nnU-Net's GradScaler skips such
    steps itself, and expects some while it finds its scale; a training whose loss is NaN would then run to its end
    with unchanged weights. So an epoch without any step ends the training too, on every device.

    Args:
        optimizer: Optimiser whose steps are checked.
        log: Writes a line of text.
        epoch: Gives the number of the epoch, for the messages.
        scaled: Whether a GradScaler decides about the steps.
    """

    def __init__(
        self, optimizer: Optimizer, log: Callable[[str], None], epoch: Callable[[], int], scaled: bool = False
    ) -> None:
        self._log, self._epoch, self.scaled = log, epoch, scaled
        self._skipped = 0
        self._taken = 0
        optimizer.register_step_pre_hook(self._before_step)

    def begin_epoch(self) -> None:
        """Call it before the first step of an epoch."""
        self._taken = 0

    def end_epoch(self, iterations: int) -> None:
        """Call it after the last step of an epoch.

        Args:
            iterations: Steps that the epoch should have taken.

        Raises:
            RuntimeError: if none was taken: the training has diverged.
        """
        if self._taken or iterations == 0:
            return
        if self.scaled:  # the scaler skips steps itself
            self._skipped += iterations
            self._log(f"No optimiser step was taken in epoch {self._epoch()}: gradients overflowed in all of them")
            if self._skipped < MAX_SCALING:
                return
        self._end(
            f"no optimiser step was taken in epoch {self._epoch()}: in all {iterations} iterations losses or gradients "
            "were not finite,"
        )

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        # A scaler has checked the gradients and lets only finite ones pass.
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.scaled or all_finite(gradients):
            self._skipped = 0
            self._taken += 1
            return
        optimizer.zero_grad(set_to_none=True)  # parameters without a gradient are not changed
        self._skipped += 1
        self._log(
            f"Loss or gradients that are not finite in epoch {self._epoch()}: step skipped ({self._skipped} in a row)"
        )
        if self._skipped >= MAX_SKIPPED:
            self._end(f"the loss was not finite in {self._skipped} steps in a row in epoch {self._epoch()},")

    def _end(self, what: str) -> None:
        raise RuntimeError(
            f"{what} with finite images: the training has diverged. The weights are unchanged since then; the "
            "last checkpoint is whole. Lower the learning rate (initial_lr of the trainer), or resume from the "
            "checkpoint with --c"
        )
