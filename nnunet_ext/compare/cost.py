"""Costs of a model: parameters, multiply-adds, time and memory."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.compare.study import Study
from nnunet_ext.nnunet.dataset_json import read_dataset_json
from nnunet_ext.nnunet.json_files import read_plans
from nnunet_ext.nnunet.training_log import TrainingLog, read_training


@dataclass(frozen=True)
class Cost:
    """Costs of one method; NaN where one was not measured.

    Attributes:
        parameters: Number of the network's parameters.
        multiply_adds: Multiply-adds of convolutions and matrix products in a forward pass of the plan's patch, batch 1.
        epoch_seconds: Median over epochs and folds.
        scan_seconds: Median over scans and folds, of nnU-Net's final validation.
        memory_gb: Highest peak in the logs.
        epochs: Epochs trained, the fewest of all folds; 0 without logs.
        iterations: Iterations per epoch, where logged.
        patch_size: Patch size of the plan, in voxels.
        reason: Why the network could not be counted; empty if it was.
    """

    parameters: float = float("nan")
    multiply_adds: float = float("nan")
    epoch_seconds: float = float("nan")
    scan_seconds: float = float("nan")
    memory_gb: float = float("nan")
    epochs: int = 0
    iterations: int | None = None
    patch_size: tuple[int, ...] = ()
    reason: str = ""


def training_logs(study: Study) -> dict[str, dict[str, TrainingLog]]:
    """Logs by method and fold; none for folders of predictions."""
    return {
        method.name: {fold: read_training(method.model / f"fold_{fold}") for fold in study.folds}
        for method in study.methods
        if method.model is not None
    }


def costs(study: Study, logs: Mapping[str, Mapping[str, TrainingLog]], timed: bool = True) -> dict[str, Cost]:
    """Costs by method, with seconds if `timed`; none for folders of predictions."""
    result = {}
    for method in study.methods:
        if method.model is None or method.trainer is None or study.configuration is None:
            continue
        read = list(logs[method.name].values())
        size: dict[str, Any]
        try:
            size = network_size(method.model, method.trainer, study.configuration)
        except Exception as error:  # a report without this number is better than none; the reason is shown
            size = {"reason": f"{type(error).__name__}: {error}"}
        result[method.name] = Cost(
            epoch_seconds=_median([s for log in read for s in log.curve("seconds")[1] if timed]),
            scan_seconds=_median([s for log in read for s in log.scan_seconds if timed]),
            memory_gb=_highest([log.peak_memory_gb for log in read]),
            epochs=min(len(log.epochs) for log in read),
            iterations=next((log.iterations for log in read if log.iterations), None),
            **size,
        )
    return result


def network_size(model: Path, trainer: str, configuration: str) -> dict[str, Any]:
    """Parameters, multiply-adds and patch size of the network that a trainer builds from a model's plan.

    Raises:
        ValueError: if nnU-Net does not find the trainer.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ext.nnunet.trainers import find_trainer
    from nnunet_ext.profiling.counts import trainer_network_size

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules that nnU-Net's search imports use deprecated parts of PyTorch
        found = find_trainer(trainer)
    dataset = read_dataset_json(model / "dataset.json")
    return trainer_network_size(found, PlansManager(read_plans(model / "plans.json")), configuration, dataset)


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def _highest(values: list[float]) -> float:
    there = [value for value in values if np.isfinite(value)]
    return max(there) if there else float("nan")
