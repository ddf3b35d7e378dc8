"""Measures every case of every entrant, in several processes, and keeps the scores."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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
from nnunet_ext.utils.messages import some_of

_RECORDED_TOLERANCE = 1e-6
Task = tuple[Path, Path, LabelSet, float]


def measure(study: Study, tolerance: float, folder: Path, processes: int) -> pd.DataFrame:
    """The scores of all cases.

    Args:
        study: What is compared.
        tolerance: Of the surface Dice, in mm.
        folder: Where scores are kept; made if it is not there.
        processes: At most this many at once.

    Returns:
        One row an entrant, case and label, in their order: entrant, case, fold, label and the fields of `LabelScores`.

    Raises:
        ValueError: if a file cannot be read or has values that dataset.json does not name, a prediction does not
            occupy the space of its label, or nnU-Net's own evaluation has other values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, cache.Scores] = {}
    tasks: dict[str, Task] = {}
    keys: dict[tuple[str, str], str] = {}
    for entrant in study.entrants:
        for name, case in entrant.cases.items():
            key = cache.content_key(case.truth, case.prediction, study.labels, tolerance)
            keys[entrant.name, name] = key
            if key not in found and key not in tasks:
                known = cache.read(folder, key, study.labels.labels)
                if known is None:
                    tasks[key] = (case.truth, case.prediction, study.labels, tolerance)
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
    for entrant in study.entrants:
        for name, case in entrant.cases.items():
            scores = found[keys[entrant.name, name]]
            _check_recorded(entrant.name, case, scores)
            rows += [
                {"entrant": entrant.name, "case": name, "fold": case.fold, "label": label} | scores[label]
                for label in study.labels.labels
            ]
    return pd.DataFrame(rows)


def _scores(tasks: list[Task], processes: int) -> Iterator[tuple[cache.Scores, str]]:
    workers = min(processes, len(tasks))
    if workers <= 1:
        yield from _progress(map(_measure_files, tasks), len(tasks))
        return
    # Spawned, as nnU-Net's workers: a fork of a process that has run torch can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from _progress(pool.map(_measure_files, tasks, chunksize=max(1, len(tasks) // (8 * workers))), len(tasks))


def _progress(results: Iterable[tuple[cache.Scores, str]], total: int) -> Iterable[tuple[cache.Scores, str]]:
    return tqdm(results, total=total, desc="Measure cases", unit="case", disable=not total)


def _measure_files(task: Task) -> tuple[cache.Scores, str]:
    """Scores of a case, and a note on its geometry; empty if there is none."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    truth_file, prediction_file, labels, tolerance = task
    reader = recursive_find_reader_writer_by_name(labels.reader)()
    truth, prediction = read_pair(reader, truth_file, prediction_file, labels.values)
    maps, spacing = flat_axis_first((truth.values, prediction.values), truth.properties["spacing"])
    return case_scores(*maps, spacing, labels.labels, labels.ignore_label, tolerance), prediction.note


def flat_axis_first(
    maps: tuple[NDArray[np.integer], NDArray[np.integer]], spacing: Sequence[float]
) -> tuple[tuple[NDArray[np.integer], NDArray[np.integer]], list[float]]:
    """Single slices with the axis of size 1 in front, whichever it was, where `case_scores` drops it.

    Shape:
        maps (D, H, W); volumes are returned as they are
    """
    shape, spacing = maps[0].shape, list(spacing)
    axis = shape.index(1) if 1 in shape else 0
    spacing.insert(0, spacing.pop(axis))
    return (np.moveaxis(maps[0], axis, 0), np.moveaxis(maps[1], axis, 0)), spacing


def _check_recorded(entrant: str, case: Case, scores: cache.Scores) -> None:
    """nnU-Net's evaluation of the same files must agree; if not, files were changed since."""
    for label, recorded in case.recorded.items():
        ours, theirs = scores[label]["dice"], recorded["Dice"]
        if not np.isclose(ours, theirs, rtol=0, atol=_RECORDED_TOLERANCE, equal_nan=True):
            raise ValueError(
                f"{entrant}, {case.name}: summary.json has Dice {theirs:.4f} for {label}, its files give {ours:.4f}: "
                "the prediction or the label was changed after the validation; run it again: `nnUNetv2_train ... --val`"
            )
