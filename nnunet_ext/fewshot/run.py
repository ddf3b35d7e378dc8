"""Few-shot segmentation of a folder of scans, and its evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext.fewshot.model import FewShotModel
from nnunet_ext.nnunet.dataset_json import label_values, read_dataset_json
from nnunet_ext.nnunet.label_maps import LabelMap, align, read_label_map
from nnunet_ext.nnunet.scans import Failure, Scan


def segment_scans(model: FewShotModel, scans: Sequence[Scan], target: Path) -> list[Failure]:
    """Segments scans one after another; one that fails does not stop the others.

    Args:
        model: A model after `FewShotModel.show`.
        scans: Scans to segment.
        target: Folder for the masks, named CASE with the scan's ending.
    """
    target.mkdir(parents=True, exist_ok=True)
    failures = []
    for scan in tqdm(scans, "Segmenting", unit="scan"):
        try:
            model.segment(scan, target / (scan.case + scan.ending))
        # The type of the error depends on the reader.
        except Exception as error:
            failures.append(Failure.of(scan, error))
    return failures


def evaluate(
    model: FewShotModel, scans: Sequence[Scan], predictions: Path, truth: Path
) -> tuple[pd.DataFrame, list[Failure]]:
    """Dice of every case and label: 2 |P and T| / (|P| + |T|), NaN where a label is in neither.

    Args:
        model: The model that segmented the scans.
        scans: Segmented scans.
        predictions: Folder that `segment_scans` wrote.
        truth: Folder with the true labels, named CASE with any ending that the reader reads.

    Returns:
        One row per case and one column per label; and the cases without true labels, or whose true labels cannot be
        compared: other values than the support masks, or another space than the scan.
    """
    rows, failures = {}, []
    for scan in tqdm(scans, "Evaluating", unit="scan"):
        try:
            true = _true_labels(model, scan, truth)
            written = read_label_map(model.reader, predictions / (scan.case + scan.ending))
            predicted = align(written, true.file, true.properties, true.values.shape)
        except (ValueError, OSError) as error:
            failures.append(Failure.of(scan, error))
        else:
            rows[scan.case] = {label: _dice(true.values == label, predicted.values == label) for label in model.labels}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(model.labels)).sort_index()
    return table.rename_axis(index="case", columns="label"), failures


def _true_labels(model: FewShotModel, scan: Scan, folder: Path) -> LabelMap:
    """The true labels of a scan.

    Their values must be those of the support masks, or of the dataset.json beside the folder (nnU-Net's labelsTr):
    a support mask may show the requested labels only.
    """
    found = [path for ending in model.endings if (path := folder / (scan.case + ending)).is_file()]
    if not found:
        raise FileNotFoundError(f"no labels of it in {folder}")
    if len(found) > 1:
        raise ValueError(f"labels of it in several formats: {', '.join(map(str, found))}; remove all but one")
    expected, source = model.shown_values, "the values of the support masks"
    description = folder.resolve().parent / "dataset.json"
    if description.is_file():
        expected |= label_values(read_dataset_json(description))
        source += f" and the labels of {description}"
    return read_label_map(model.reader, found[0], expected, source)


def _dice(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    total = int(np.count_nonzero(truth)) + int(np.count_nonzero(prediction))
    return 2 * int(np.count_nonzero(truth & prediction)) / total if total else float("nan")


def write_evaluation(table: pd.DataFrame, folder: Path) -> None:
    """Writes dice.csv (case, label, dice) and dice.md, a table with the means."""
    table.stack(future_stack=True).rename("dice").to_csv(folder / "dice.csv")
    lines = [
        "| case | " + " | ".join(f"label {label}" for label in table.columns) + " |",
        "|---" * (1 + len(table.columns)) + "|",
    ]
    shown = [*table.iterrows(), ("**mean**", table.mean())]
    lines += [f"| {case} | " + " | ".join(f"{value:.3f}" for value in row) + " |" for case, row in shown]
    (folder / "dice.md").write_text("\n".join(lines) + "\n")
