"""All trainers against all that nnU-Net does, as the tests in `tests/features` found it.

They write down what they find where the variable names a file, one a process; this reads them and makes the page:

    NNUNET_EXT_FEATURE_MATRIX=part.csv pytest -m slow tests/features
    python -m benchmarks.page.feature_matrix part.csv

With NNUNET_EXT_FORKED=1 nnU-Net's commands are forks of one process, which spares nine tenths of the time.
A cell that is in the committed table already is replaced. Without a file the page is made anew from that table.
"""

import argparse
import csv
import datetime
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from nnunet_ext.bench.measure import commit

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "feature_matrix.csv"
PAGE = ROOT / "docs" / "features.md"

TRAINERS = (
    "SASANTrainer",
    "SASANTrainerDiceCE",
    "EMNetTrainer",
    "LSTMSATrainer",
    "SALSTMTrainer",
    "FAFNetTrainer",
    "FAFNetFewShotTrainer",
)
INTEGRATION_TRAINERS = ("SASANTrainer", "EMNetTrainer")
PASSED = "passed"


@dataclass(frozen=True)
class Feature:
    """One of the things that nnU-Net does.

    Attributes:
        title: As the table has it.
        checked: What its test checks, beyond that the commands succeed.
    """

    title: str
    checked: str


_MASKS = "masks have the image's geometry and legal labels only"

FEATURES = {
    "2d": Feature("`2d`", f"trained and validated; {_MASKS}"),
    "3d_fullres": Feature("`3d_fullres`", f"trained and validated; {_MASKS}"),
    "cascade": Feature(
        "`3d_lowres` + `3d_cascade_fullres`",
        "all cases are handed on; other labels from the first stage change the second one's probabilities",
    ),
    "regions": Feature(
        "region-based labels", "probabilities of each region, and the mask is written in `regions_class_order`"
    ),
    "ignore": Feature("ignore label", "learns from partly labelled scans; the ignore label is never predicted"),
    "regions_ignore": Feature("regions and ignore label", "both of the above together"),
    "two_modalities": Feature("two modalities", "the second one changes the probabilities"),
    "anisotropic": Feature("anisotropic data", f"every third slice, thin patches, anisotropic kernels; {_MASKS}"),
    "nifti": Feature("NIfTI", "origin, spacing and direction of the mask are the scan's"),
    "png_rgb": Feature("PNG, RGB", "three colours are three channels; the mask is a PNG of the image's size"),
    "fold_all": Feature("fold `all`", "trains on all cases, validates on all of them, predicts with `-f all`"),
    "npz_ensemble": Feature(
        "`--npz` and `nnUNetv2_ensemble`",
        "probabilities sum to 1; the ensemble of 2d and 3d is the argmax of their mean",
    ),
    "find_best": Feature(
        "`nnUNetv2_find_best_configuration`", "scores 2d, 3d and their ensemble over two folds; its commands run"
    ),
    "postprocessing": Feature(
        "its postprocessing", "`nnUNetv2_apply_postprocessing` does to a mask what `postprocessing.json` says"
    ),
    "continue": Feature(
        "`--c` after a kill", "SIGKILL in the second of three epochs; goes on with the second, ends with three"
    ),
    "val": Feature("`--val`", "the validation of the training again: the same masks"),
    "val_best": Feature("`--val_best`", "the masks that `nnUNetv2_predict -chk checkpoint_best.pth` makes"),
    "pretrained": Feature(
        "`-pretrained_weights`", "before the first step all weights but the last layers' are the other training's"
    ),
    "zip": Feature(
        "`nnUNetv2_export_model_to_zip`, install elsewhere", "installed into empty folders it predicts the same masks"
    ),
    "modelfolder": Feature("`nnUNetv2_predict_from_modelfolder`", "the masks of `nnUNetv2_predict`"),
    "predictor": Feature("`nnUNetPredictor` in Python", "an array in, the mask of `nnUNetv2_predict` out"),
    "disable_tta": Feature("`--disable_tta`", "other probabilities than with mirroring"),
    "step_size": Feature("step size 1", "other probabilities than with overlapping tiles; legal masks"),
}

INTEGRATION = {
    "integration_ignore": Feature("Dataset998, ignore label", "all steps, two configurations' cascade included"),
    "integration_regions": Feature("Dataset997, regions", "as above"),
    "integration_regions_ignore": Feature("Dataset996, regions and ignore label", "as above"),
}


@dataclass(frozen=True)
class Cell:
    """What a test found, as a row of the table of results; `started` is ``commands`` or ``forks``."""

    trainer: str
    feature: str
    outcome: str
    seconds: float
    started: str
    nnunetv2: str
    torch: str
    python: str
    date: str
    commit: str


_HEAD = """# What works with which trainer

Made by `python -m benchmarks.page.feature_matrix` from
[what the tests found](../benchmarks/results/feature_matrix.csv), not by hand. A tick is a test in `tests/features` that
ran nnU-Net's console commands on the shipped scans: small patches, one epoch, on the CPU. {started}.
{versions}.{missing}
"""

_INTEGRATION_HEAD = """
## nnU-Net's own integration tests

Its datasets, made by its own code from the shipped scans, and its own steps: planning, a low resolution and a cascade
added, preprocessing, five folds of four configurations, the best of them and of their ensembles found and predicted
with; small patches.
"""


def cell(trainer: str, feature: str, outcome: str, seconds: float, started: str) -> Cell:
    """A cell that was tested now, with the code as it is."""
    return Cell(
        trainer,
        feature,
        outcome,
        round(seconds, 1),
        started,
        version("nnunetv2"),
        version("torch"),
        platform.python_version(),
        datetime.date.today().isoformat(),
        commit(),
    )


def read(path: Path) -> dict[tuple[str, str], Cell]:
    """Cells by trainer and feature; of one that is there twice the later."""
    with path.open() as file:
        rows = [Cell(**row | {"seconds": float(row["seconds"])}) for row in csv.DictReader(file)]
    return {(row.trainer, row.feature): row for row in rows}


def append(path: Path, row: Cell) -> None:
    """Adds a row to a file, which is made if it is not there."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = _writer(file)
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def write(path: Path, cells: Iterable[Cell]) -> None:
    """All cells, in the order of the page."""
    order = [*FEATURES, *INTEGRATION]
    with path.open("w", newline="") as file:
        writer = _writer(file)
        writer.writeheader()
        for row in sorted(cells, key=lambda c: (order.index(c.feature), TRAINERS.index(c.trainer))):
            writer.writerow(asdict(row))


def expected_cells() -> list[tuple[str, str]]:
    """Trainer and feature of every cell that the page must have."""
    return [(trainer, feature) for feature in FEATURES for trainer in TRAINERS] + [
        (trainer, feature) for feature in INTEGRATION for trainer in INTEGRATION_TRAINERS
    ]


def page(cells: dict[tuple[str, str], Cell]) -> str:
    """The page of the documentation, with the outcome of every cell, ``?`` where there is none."""
    number = len(expected_cells()) - len(cells)
    missing = f"\n\n{number} cells have not been run yet: a question mark." if number else ""
    versions = "; ".join(_range(name, cells) for name in ("nnunetv2", "torch", "python", "date"))
    lines = [
        _HEAD.format(versions=versions, started=_started(cells), missing=missing),
        *_table(FEATURES, TRAINERS, cells),
        _INTEGRATION_HEAD,
        *_table(INTEGRATION, INTEGRATION_TRAINERS, cells),
        "\n## What each test checks\n\nBeyond that the commands succeed:\n",
        *(f"* {feature.title}: {feature.checked}." for feature in FEATURES.values()),
    ]
    return "\n".join(lines) + "\n"


def _table(
    features: dict[str, Feature], trainers: tuple[str, ...], cells: dict[tuple[str, str], Cell]
) -> Iterable[str]:
    yield "| | " + " | ".join(trainer.replace("Trainer", "", 1) for trainer in trainers) + " |"
    yield "|---" * (len(trainers) + 1) + "|"
    for key, feature in features.items():
        found = [cells.get((trainer, key)) for trainer in trainers]
        marks = ["?" if c is None else "✓" if c.outcome == PASSED else c.outcome for c in found]
        yield f"| {feature.title} | " + " | ".join(marks) + " |"


def _started(cells: dict[tuple[str, str], Cell]) -> str:
    forks = sum(row.started == "forks" for row in cells.values())
    return (
        f"In {forks} of {len(cells)} cells each command was a fork of a process that had imported nnU-Net\n"
        "(`NNUNET_EXT_FORKED=1`), with the same entry point and arguments, in the others started anew"
    )


def _range(name: str, cells: dict[tuple[str, str], Cell]) -> str:
    values = sorted({getattr(row, name) for row in cells.values()})
    return f"{name} " + (values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}" if values else "unknown")


def _writer(file) -> csv.DictWriter:
    return csv.DictWriter(file, [field.name for field in fields(Cell)], lineterminator="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", type=Path, help="what tests have written")
    cells = read(RESULTS) if RESULTS.is_file() else {}
    for part in parser.parse_args().parts:
        cells |= read(part)
    write(RESULTS, cells.values())
    PAGE.write_text(page(cells))


if __name__ == "__main__":
    main()
