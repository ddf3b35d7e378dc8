"""Few-shot segmentation of a folder of scans, and its evaluation."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from tqdm import tqdm

from nnunet_ext.fewshot.model import FewShotModel
from nnunet_ext.nnunet.scans import Failure, Scan


def segment_scans(model: FewShotModel, scans: Sequence[Scan], target: Path) -> list[Failure]:
    """Segments scans one after another; one that fails does not stop the others.

    Args:
        model: After `FewShotModel.show`.
        scans: To segment.
        target: Folder for the masks, CASE and the scan's ending.
    """
    target.mkdir(parents=True, exist_ok=True)
    failures = []
    for scan in tqdm(scans, "Segmenting", unit="scan"):
        try:
            model.segment(scan, target / (scan.case + scan.ending))
        # Whatever a reader makes of a broken file.
        except Exception as error:
            failures.append(Failure.of(scan, error))
    return failures


def evaluate(
    model: FewShotModel, scans: Sequence[Scan], predictions: Path, truth: Path
) -> tuple[pd.DataFrame, list[Failure]]:
    """Dice of every case and label: 2 |P and T| / (|P| + |T|), NaN where a label is in neither.

    Args:
        model: With the labels and the reader.
        scans: That were segmented.
        predictions: Folder of `segment_scans`.
        truth: Folder with the true labels, CASE and any ending that the reader reads.

    Returns:
        A row a case, a column a label; and the cases without truth or with one that cannot be compared.
    """
    rows, failures = {}, []
    for scan in tqdm(scans, "Evaluating", unit="scan"):
        found = [path for ending in model.endings if (path := truth / (scan.case + ending)).is_file()]
        try:
            if not found:
                raise FileNotFoundError(f"no labels of it in {truth}")
            predicted = predictions / (scan.case + scan.ending)
            metrics = compute_metrics(str(found[0]), str(predicted), model.reader, list(model.labels))["metrics"]
            rows[scan.case] = {label: metrics[label]["Dice"] for label in model.labels}
        except Exception as error:
            failures.append(Failure.of(scan, error))
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(model.labels)).sort_index()
    return table.rename_axis(index="case", columns="label"), failures


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
