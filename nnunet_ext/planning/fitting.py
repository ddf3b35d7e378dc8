"""Fits patches and batches into a memory limit by tracing a trainer's step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunet_ext.planning.patches import Refusal
from nnunet_ext.profiling.live_memory import LimitExceeded
from nnunet_ext.profiling.memory import TrainingMemory, trace_step
from nnunet_ext.profiling.trainer_step import trainer_step


@dataclass(frozen=True)
class Candidate:
    """A network on a patch, as a configuration of a plan would train it.

    Attributes:
        architecture: `architecture` of the plan.
        patch_size: Voxels per axis.
        cascaded: Whether the step is a second stage's, whose input includes the first stage's segmentation.
    """

    architecture: dict[str, Any]
    patch_size: tuple[int, ...]
    cascaded: bool = False


class Fitting:
    """Traces a trainer's steps against a limit, each only once.

    Args:
        trainer: The trainer's class.
        dataset_json: Content of the dataset's dataset.json.
        limit: Bytes that a training step may take.
    """

    def __init__(self, trainer: type, dataset_json: dict, limit: int) -> None:
        self.trainer, self.dataset_json, self.limit = trainer, dataset_json, limit
        self._known: dict[str, TrainingMemory | None] = {}

    def trace(self, candidate: Candidate, batch_size: int, unlimited: bool = False) -> TrainingMemory | None:
        """Returns the memory of a step, or None if it exceeds the limit.

        Args:
            candidate: Network and patch.
            batch_size: Samples in a batch.
            unlimited: Whether to trace beyond the limit; there is always a result then.
        """
        key = repr((candidate, batch_size, unlimited))
        if key not in self._known:
            plans = plans_of(candidate, batch_size)
            (name,) = plans["configurations"]
            step = trainer_step(self.trainer, plans, name, self.dataset_json, batch_size)
            try:
                self._known[key] = trace_step(step, limit=None if unlimited else self.limit)
            except LimitExceeded:
                self._known[key] = None
        return self._known[key]

    def largest_batch(self, candidate: Candidate, least: int, most: int) -> int:
        """Returns the largest batch size from `least`, which is known to fit, to `most`."""

        def fits(batch_size: int) -> bool:
            return self.trace(candidate, batch_size) is not None

        if most <= least or fits(most):
            return max(least, most)
        fitting, exceeding = least, most
        for probe in self._probes(candidate, least):
            if fitting < probe < exceeding:
                fitting, exceeding = (probe, exceeding) if fits(probe) else (fitting, probe)
        while exceeding - fitting > 1:
            middle = (fitting + exceeding) // 2
            fitting, exceeding = (middle, exceeding) if fits(middle) else (fitting, middle)
        return fitting

    def _probes(self, candidate: Candidate, least: int) -> list[int]:
        """Batch sizes around the limit if memory grows by the same for every sample, which it nearly does."""
        first, second = (self.trace(candidate, batch_size) for batch_size in (least, least + 1))
        if first is None or second is None:
            return [least + 1]
        guess = least + (self.limit - first.total) // max(1, second.total - first.total)
        return [guess, guess + 1]


@dataclass
class Search:
    """The search for the patch of one configuration.

    Attributes:
        name: The configuration.
        cascaded: As `Candidate.cascaded`.
        too_large: Candidates that exceeded the limit, the largest first.
        strides: Strides of the U-Net that nnU-Net's planner proposes, per stage and axis.
        multiple: Multiple of every size of a patch, learnt from refusals.
        refusals: Patches that the network refused, in order.
    """

    name: str
    cascaded: bool = False
    too_large: list[Candidate] = field(default_factory=list)
    strides: Sequence[Sequence[int]] = ()
    multiple: int = 1
    refusals: list[Refusal] = field(default_factory=list)


def plans_of(candidate: Candidate, batch_size: int) -> dict[str, Any]:
    """The parts of nnU-Net's plans that a trainer reads before it trains, with one configuration, `traced`."""
    configuration = {
        "data_identifier": "traced",
        "batch_size": batch_size,
        "batch_dice": True,
        "patch_size": list(candidate.patch_size),
        "architecture": candidate.architecture,
    }
    if candidate.cascaded:
        configuration["previous_stage"] = "3d_lowres"
    return {
        "dataset_name": "traced",
        "plans_name": "traced",
        "label_manager": "LabelManager",
        "configurations": {"traced": configuration},
    }
