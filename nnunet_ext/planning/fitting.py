"""Which batches of a patch fit a memory, by traces of a trainer's step."""

from typing import Any

from nnunet_ext.profiling.live_memory import LimitExceeded
from nnunet_ext.profiling.memory import TrainingMemory, trace_step
from nnunet_ext.profiling.trainer_step import trainer_step


class Fitting:
    """Traces a trainer's steps against a limit; each only once.

    Args:
        trainer: The trainer.
        dataset_json: The dataset's.
        limit: Bytes that a training step may take.
    """

    def __init__(self, trainer: type, dataset_json: dict, limit: int) -> None:
        self.trainer, self.dataset_json, self.limit = trainer, dataset_json, limit
        self.cascaded = False
        """Whether steps are those of a second stage, whose input has the first one's segmentation too."""
        self._known: dict[str, TrainingMemory | None] = {}

    def trace(
        self, architecture: dict[str, Any], patch_size: tuple[int, ...], batch_size: int, unlimited: bool = False
    ) -> TrainingMemory | None:
        """Memory of a step; None if it takes more than the limit."""
        key = repr((architecture, patch_size, batch_size, unlimited, self.cascaded))
        if key not in self._known:
            plans = _plans_of(architecture, patch_size, batch_size, self.cascaded)
            (name,) = plans["configurations"]
            step = trainer_step(self.trainer, plans, name, self.dataset_json, batch_size)
            try:
                self._known[key] = trace_step(step, limit=None if unlimited else self.limit)
            except LimitExceeded:
                self._known[key] = None
        return self._known[key]

    def largest_batch(self, architecture: dict[str, Any], patch_size: tuple[int, ...], least: int, most: int) -> int:
        """The largest batch size from `least`, which is known to fit, to `most`."""

        def fits(batch_size: int) -> bool:
            return self.trace(architecture, patch_size, batch_size) is not None

        if most <= least or fits(most):
            return max(least, most)
        fitting, exceeding = least, most
        for probe in self._probes(architecture, patch_size, least):
            if fitting < probe < exceeding:
                fitting, exceeding = (probe, exceeding) if fits(probe) else (fitting, probe)
        while exceeding - fitting > 1:
            middle = (fitting + exceeding) // 2
            fitting, exceeding = (middle, exceeding) if fits(middle) else (fitting, middle)
        return fitting

    def _probes(self, architecture: dict[str, Any], patch_size: tuple[int, ...], least: int) -> list[int]:
        """Where the limit is if memory grows by the same for every sample, which it nearly does."""
        first, second = (self.trace(architecture, patch_size, batch_size) for batch_size in (least, least + 1))
        if first is None or second is None:
            return [least + 1]
        guess = least + (self.limit - first.total) // max(1, second.total - first.total)
        return [guess, guess + 1]


def _plans_of(
    architecture: dict[str, Any], patch_size: tuple[int, ...], batch_size: int, cascaded: bool
) -> dict[str, Any]:
    """As much of nnU-Net's plans as a trainer reads before it trains."""
    configuration = {
        "data_identifier": "traced",
        "batch_size": batch_size,
        "batch_dice": True,
        "patch_size": list(patch_size),
        "architecture": architecture,
    }
    if cascaded:
        configuration["previous_stage"] = "3d_lowres"
    return {
        "dataset_name": "traced",
        "plans_name": "traced",
        "label_manager": "LabelManager",
        "configurations": {"traced": configuration},
    }
