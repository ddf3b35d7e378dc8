"""Estimates how long the trainings of a run still take."""

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_ext.crossval.runner import Row, Status
from nnunet_ext.nnunet.trained_model import split_model_name
from nnunet_ext.nnunet.training_log import Progress, read_progress


def progress_of_row(row: Row) -> Progress:
    """Progress of a training; while it runs, of this run only."""
    assert row.node.fold_folder is not None
    since = row.child.began if row.child is not None else 0.0
    return read_progress(row.node.fold_folder, _trainer(row), since)


def progress_of_trainings(rows: Sequence[Row]) -> dict[str, Progress]:
    """Progress of the trainings that run or have finished, by the names of their steps."""
    return {
        row.node.name: progress_of_row(row) for row in rows if _is(row, Status.RUNNING) or _is(row, Status.FINISHED)
    }


def seconds_left(rows: Sequence[Row], progress: Mapping[str, Progress] | None = None) -> float | None:
    """Seconds until all trainings have run their epochs; None until the speed of one is known.

    A training takes as long per epoch as the same trainer took in other folds, or else as the trainers did on average.
    Validations and the steps before and after the trainings are not counted.

    Args:
        rows: All steps of a run.
        progress: As `progress_of_trainings` returns it, if it is known.
    """
    progress = progress_of_trainings(rows) if progress is None else progress
    running = [row for row in rows if _is(row, Status.RUNNING)]
    waiting = [row for row in rows if _is(row, Status.WAITING)]
    if not running and not waiting:
        return None
    durations: dict[str, list[float]] = {}
    for row in rows:
        known = progress.get(row.node.name)
        if known is not None and known.seconds_per_epoch is not None:
            durations.setdefault(_trainer(row), []).append(known.epochs * known.seconds_per_epoch)
    if not durations:
        return None
    means = {trainer: float(np.mean(seconds)) for trainer, seconds in durations.items()}
    average = float(np.mean(list(means.values())))
    ends = [0.0] * max(1, len({row.slot.name for row in rows if row.slot is not None and row.node.fold is not None}))
    for row in running:
        left = progress[row.node.name].seconds_left
        heapq.heappushpop(ends, means.get(_trainer(row), average) if left is None else left)
    for row in waiting:  # each on the place that is free first
        heapq.heappush(ends, heapq.heappop(ends) + means.get(_trainer(row), average))
    return max(ends) or None  # all epochs have ended


def _is(row: Row, status: Status) -> bool:
    return row.status is status and row.node.fold_folder is not None


def _trainer(row: Row) -> str:
    assert row.node.fold_folder is not None
    return split_model_name(row.node.fold_folder.parent.name)[0]
