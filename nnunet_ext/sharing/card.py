"""The model card: what was trained on what, how well it does, and what it is for."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from nnunet_ext.compare.metrics import PRIMARY
from nnunet_ext.nnunet.json_files import read_json, read_json_if_whole
from nnunet_ext.nnunet.training_log import read_training
from nnunet_ext.sharing.manifest import Manifest

INTENDED_USE = "Research. This is not a medical device, and it has not been validated for clinical use."
_REPORT, _CASES = "summary.json", "cases.csv"
_MEAN = "mean"


@dataclass(frozen=True)
class Statements:
    """What only the model's author knows.

    Attributes:
        intended_use: What the model is for.
        report: Folder of a report of `nnunet_ext compare` or `crossval` on this model; None: Dice from nnU-Net's own
            validation, without an interval.
    """

    intended_use: str = INTENDED_USE
    report: Path | None = None


def model_card(manifest: Manifest, model: Path, predictor: Any, statements: Statements) -> str:
    """The card in Markdown.

    Args:
        manifest: The manifest, of which the checksums are not used.
        model: The model's folder.
        predictor: nnU-Net's predictor with the model.
        statements: What only its author knows.

    Raises:
        FileNotFoundError, ValueError: for a report that is missing, damaged, or on other trainers.
    """
    dataset, configuration = predictor.dataset_json, predictor.configuration_manager
    channels = dataset.get("channel_names") or dataset.get("modality") or {}
    budgets = {_budget(model / f"fold_{fold}") for fold in manifest.folds}
    rows = {
        "Data": dataset.get("description") or dataset.get("name") or manifest.dataset,
        "Data's source": dataset.get("reference", "not stated"),
        "Data's licence": dataset.get("licence") or dataset.get("license") or "not stated",
        "Training cases": f"{dataset.get('numTraining', 'unknown')}, folds {', '.join(manifest.folds)}",
        "Channels": ", ".join(map(str, channels.values())),
        "Labels": ", ".join(name for name in dataset["labels"] if name != "background"),
        "Spacing": f"{' x '.join(f'{step:g}' for step in configuration.spacing)} mm",
        "Patch": f"{' x '.join(map(str, configuration.patch_size))} voxels",
        "Training": ", ".join(sorted(budgets)),
        "Licence of the model": manifest.licence,
        "Made with": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    return (
        f"# {manifest.trainer}, {manifest.configuration}, on {manifest.dataset}\n\n"
        f"## Intended use\n\n{statements.intended_use}\n\n"
        f"## Data and training\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Accuracy\n\n{_accuracy(manifest, model, statements.report)}\n"
    )


def _budget(fold: Path) -> str:
    log = read_training(fold)
    epochs = len(log.epochs)
    if not epochs:
        return "budget unknown"
    return f"{epochs} epochs" + (f" of {log.iterations} iterations" if log.iterations else "")


def _accuracy(manifest: Manifest, model: Path, report: Path | None) -> str:
    if report is not None:
        return _reported(manifest, report)
    means = []
    for fold in manifest.folds:
        summary = read_json_if_whole(model / f"fold_{fold}" / "validation" / _REPORT) or {}
        mean = summary.get("foreground_mean", {}).get("Dice")
        if mean is not None and fold != "all":
            means.append(f"{mean:.3f} (fold {fold})")
    if not means:
        return "Not measured."
    return (
        f"Mean foreground Dice of nnU-Net's validation: {', '.join(means)}. These are means over cases without an "
        "interval; `nnunet_ext pack --report` takes one from a comparison."
    )


def _reported(manifest: Manifest, report: Path) -> str:
    file, entrant = report / _REPORT, manifest.trainer
    content = read_json(file)
    if not isinstance(content, dict) or "means" not in content or entrant not in content.get("entrants", ()):
        raise ValueError(f"{file} is no report of `nnunet_ext compare` on {entrant}")
    scores = _scores(report / _CASES, entrant)
    labels = [*content["labels"], _MEAN]
    lines = [f"| {label} | {_mean_and_interval(scores, label, labels[:-1])} |" for label in labels]
    compared = [
        _difference(row, content["baseline"])
        for row in content["comparisons"]
        if row["entrant"] == entrant and row["metric"] == PRIMARY and row["mean_of_labels"]
    ]
    text = (
        f"From a comparison on {content['cases']} validation cases, folds {', '.join(content['folds'])}; intervals of "
        "95% are over cases, and hold for these trainings:\n\n"
        "| label | Dice |\n|---|---|\n" + "\n".join(lines)
    )
    return "\n\n".join([text, *compared])


def _scores(file: Path, entrant: str) -> dict[str, dict[str, list[float]]]:
    """Dice by label and case, of all repeats; cases without a score are left out."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row["entrant"] == entrant and row[PRIMARY] not in ("", "nan"):
                found[row["label"]][row["case"]].append(float(row[PRIMARY]))
    return found


def _mean_and_interval(scores: Mapping[str, Mapping[str, list[float]]], label: str, labels: Sequence[str]) -> str:
    """Mean over cases with its bootstrap interval (BCa); for the mean of labels, over every case's mean of labels."""
    by_case: dict[str, list[float]] = defaultdict(list)
    for name in labels if label == _MEAN else [label]:
        for case, values in scores.get(name, {}).items():
            by_case[case].append(float(np.mean(values)))
    means = np.array([np.mean(of_case) for of_case in by_case.values()])
    if len(means) < 2 or np.ptp(means) == 0:
        return f"{means.mean():.3f}" if len(means) else "no case"
    low, high = bootstrap((means,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return f"{means.mean():.3f} ({low:.3f} to {high:.3f})"


def _difference(row: Mapping[str, Any], baseline: str) -> str:
    low, high = row["interval_low"], row["interval_high"]
    return (
        f"Difference of mean Dice to {baseline}: {row['difference']:+.3f} "
        f"(95% interval {low:+.3f} to {high:+.3f}): {row['verdict']}."
    )


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
