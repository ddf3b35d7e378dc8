"""Measures every case of every method in several processes and keeps the scores."""

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext.compare import cache
from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.metrics import case_scores
from nnunet_ext.compare.study import Case, Study
from nnunet_ext.nnunet.label_maps import read_pair
from nnunet_ext.utils.free_memory import free_bytes
from nnunet_ext.utils.messages import some_of
from nnunet_ext.utils.workers import worker_pool

_RECORDED_TOLERANCE = 1e-6
_WORKER_BYTES = 700 * 2**20  # of a process that has imported nnU-Net
_VOXEL_BYTES = 24  # two maps as a reader gives them, and what the metrics make of them
Task = tuple[Path, Path, LabelSet, Mapping[str, float], Collection[str]]


def measure(
    study: Study, tolerances: Mapping[str, float], folder: Path, processes: int, lesions: Collection[str] = ()
) -> pd.DataFrame:
    """The scores of all cases.

    Args:
        study: The study.
        tolerances: Tolerance of the surface Dice by label, in mm.
        folder: Folder in which scores are kept; created if it is missing.
        processes: Largest number of worker processes; fewer are started where memory is short.
        lesions: Labels whose lesions are counted.

    Returns:
        One row per method, repeat, case and label, in this order: entrant, repeat, case, fold, label, the fields of
        `LabelScores` and, if there are `lesions`, those of `LesionCounts`, NaN for other labels.

    Raises:
        ValueError: if a file cannot be read or has values that dataset.json does not name, a prediction does not
            occupy the space of its label, or nnU-Net's own evaluation has other values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, cache.Scores] = {}
    tasks: dict[str, Task] = {}
    keys: dict[tuple[str, int, str], str] = {}
    for method in study.methods:
        for repeat, run in enumerate(method.runs, start=1):
            for name, case in run.cases.items():
                key = cache.content_key(case.truth, case.prediction, study.labels, tolerances, lesions)
                keys[method.name, repeat, name] = key
                if key not in found and key not in tasks:
                    known = cache.read(folder, key, study.labels.labels, lesions)
                    if known is None:
                        tasks[key] = (case.truth, case.prediction, study.labels, tolerances, lesions)
                    else:
                        found[key] = known
    notes = []
    for key, (scores, note) in zip(tasks, _scores(list(tasks.values()), processes), strict=True):
        cache.write(folder, key, scores)
        found[key] = scores
        notes += [note] if note else []
    if notes:
        print(f"Note: {some_of(notes, 3)}; nothing was resampled.", file=sys.stderr)
    rows = []
    for method in study.methods:
        for repeat, run in enumerate(method.runs, start=1):
            for name, case in run.cases.items():
                scores = found[keys[method.name, repeat, name]]
                _check_recorded(method.name, case, scores)
                known_as = {"entrant": method.name, "repeat": repeat, "case": name, "fold": case.fold}
                rows += [known_as | {"label": label} | scores[label] for label in study.labels.labels]
    return pd.DataFrame(rows)


def _scores(tasks: list[Task], processes: int) -> Iterator[tuple[cache.Scores, str]]:
    workers = min(processes, len(tasks))
    if workers > 1:
        workers = affordable(workers, max((task[0] for task in tasks), key=lambda file: file.stat().st_size))
    if workers <= 1:
        yield from _progress(map(_measure_files, tasks), len(tasks))
        return
    # Spawned, as nnU-Net's workers: a fork of a process that has run torch can hang.
    with worker_pool(workers) as pool:
        yield from _progress(pool.map(_measure_files, tasks, chunksize=max(1, len(tasks) // (8 * workers))), len(tasks))


def affordable(workers: int, largest: Path, free: int | None = None) -> int:
    """The number of worker processes for which there is memory, at least one.

    Args:
        workers: Number wanted.
        largest: The largest segmentation map.
        free: Free memory in bytes; None: what the system tells.
    """
    free = free_bytes() if free is None else free
    if free is None:
        return workers
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(largest))
    try:
        reader.ReadImageInformation()
        voxels = math.prod(reader.GetSize())
    except RuntimeError:  # a format that SimpleITK does not read
        voxels = 0
    return max(1, min(workers, int(free // (_WORKER_BYTES + _VOXEL_BYTES * voxels))))


def _progress(results: Iterable[tuple[cache.Scores, str]], total: int) -> Iterable[tuple[cache.Scores, str]]:
    return tqdm(results, total=total, desc="Measure cases", unit="case", disable=not total)


def _measure_files(task: Task) -> tuple[cache.Scores, str]:
    """Scores of a case, and a note on its geometry; empty if there is none."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    truth_file, prediction_file, labels, tolerances, lesions = task
    reader = recursive_find_reader_writer_by_name(labels.reader)()
    truth, prediction = read_pair(reader, truth_file, prediction_file, labels.values)
    maps, spacing = flat_axis_first((truth.values, prediction.values), truth.properties["spacing"])
    scores = case_scores(
        *maps,
        spacing,
        labels=labels.labels,
        tolerances=tolerances,
        ignore_label=labels.ignore_label,
        lesions=lesions,
    )
    return scores, prediction.note


def flat_axis_first(
    maps: tuple[NDArray[np.integer], NDArray[np.integer]], spacing: Sequence[float]
) -> tuple[tuple[NDArray[np.integer], NDArray[np.integer]], list[float]]:
    """Moves the axis of size 1 of a single slice to the front, where `case_scores` drops it.

    Shape:
        maps (D, H, W); volumes are returned as they are
    """
    shape, spacing = maps[0].shape, list(spacing)
    axis = shape.index(1) if 1 in shape else 0
    spacing.insert(0, spacing.pop(axis))
    return (np.moveaxis(maps[0], axis, 0), np.moveaxis(maps[1], axis, 0)), spacing


def _check_recorded(method: str, case: Case, scores: cache.Scores) -> None:
    """nnU-Net's evaluation of the same files must agree; if not, files were changed since."""
    for label, recorded in case.recorded.items():
        ours, theirs = scores[label]["dice"], recorded["Dice"]
        if not np.isclose(ours, theirs, rtol=0, atol=_RECORDED_TOLERANCE, equal_nan=True):
            raise ValueError(
                f"{method}, {case.name}: summary.json has Dice {theirs:.4f} for {label}, its files give {ours:.4f}: "
                "the prediction or the label was changed after the validation; run it again: `nnUNetv2_train ... --val`"
            )
