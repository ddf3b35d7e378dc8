"""Generates docs/features.md, the matrix of trainers and nnU-Net's features, from the outcomes of `tests/features`.

The tests append their outcomes to the file that the environment variable names (one file per process); this module
reads the files and writes the page:

    NNUNET_EXT_FEATURE_MATRIX=part.csv pytest -m slow tests/features
    python -m benchmarks.page.feature_matrix part.csv

With NNUNET_EXT_FORKED=1 nnU-Net's commands are forks of one process, which saves nine tenths of the time.
New outcomes replace those in the committed table. Without a file, the page is regenerated from that table.
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
    "UMambaEncTrainer",
)
BASELINES = (
    "MONAIUNetTrainer",
    "MONAIResUNetTrainer",
    "MONAIAttentionUNetTrainer",
    "MONAIUNetPlusPlusTrainer",
    "MONAIVNetTrainer",
    "MONAISegResNetTrainer",
    "MONAIHighResNetTrainer",
    "UNETRTrainer",
    "SwinUNETRTrainer",
    "MedNeXtTrainer",
)
INTEGRATION_TRAINERS = ("SASANTrainer", "EMNetTrainer")
PASSED = "passed"


@dataclass(frozen=True)
class Feature:
    """A feature of nnU-Net.

    Attributes:
        title: Title in the table.
        checked: Checks of its test beyond the success of the commands.
    """

    title: str
    checked: str


_MASKS = "masks have the image's geometry and valid labels only"

FEATURES = {
    "2d": Feature("`2d`", f"trained and validated; {_MASKS}"),
    "3d_fullres": Feature("`3d_fullres`", f"trained and validated; {_MASKS}"),
    "cascade": Feature(
        "`3d_lowres` + `3d_cascade_fullres`",
        "all cases reach the second stage; changing the first stage's labels changes the second's probabilities",
    ),
    "regions": Feature(
        "region-based labels", "each region has probabilities, and the mask follows `regions_class_order`"
    ),
    "ignore": Feature("ignore label", "learns from partially labelled scans; the ignore label is never predicted"),
    "regions_ignore": Feature("regions and ignore label", "both of the above together"),
    "two_modalities": Feature("two modalities", "the second modality changes the probabilities"),
    "anisotropic": Feature("anisotropic data", f"every third slice, thin patches, anisotropic kernels; {_MASKS}"),
    "nifti": Feature("NIfTI", "the mask has the scan's origin, spacing and direction"),
    "png_rgb": Feature("PNG, RGB", "the three colours are three channels; the mask is a PNG of the image's size"),
    "fold_all": Feature("fold `all`", "trains on all cases, validates on all of them, predicts with `-f all`"),
    "npz_ensemble": Feature(
        "`--npz` and `nnUNetv2_ensemble`",
        "probabilities sum to 1; the ensemble of 2d and 3d is the argmax of their mean",
    ),
    "find_best": Feature(
        "`nnUNetv2_find_best_configuration`",
        "scores 2d, 3d and their ensemble over two folds; the commands that it suggests run",
    ),
    "postprocessing": Feature(
        "its postprocessing", "`nnUNetv2_apply_postprocessing` applies `postprocessing.json` to a mask"
    ),
    "continue": Feature(
        "`--c` after a kill",
        "killed (SIGKILL) in the second of three epochs, it resumes with the second and ends with three",
    ),
    "val": Feature("`--val`", "repeats the training's validation and writes the same masks"),
    "val_best": Feature("`--val_best`", "writes the same masks as `nnUNetv2_predict -chk checkpoint_best.pth`"),
    "pretrained": Feature(
        "`-pretrained_weights`",
        "before the first step, all weights except the last layers' equal those of the other training",
    ),
    "zip": Feature(
        "`nnUNetv2_export_model_to_zip`, install elsewhere",
        "the model predicts the same masks after installation into empty folders",
    ),
    "modelfolder": Feature("`nnUNetv2_predict_from_modelfolder`", "writes the same masks as `nnUNetv2_predict`"),
    "predictor": Feature("`nnUNetPredictor` in Python", "returns for an array the same mask as `nnUNetv2_predict`"),
    "disable_tta": Feature("`--disable_tta`", "the probabilities differ from those with mirroring"),
    "step_size": Feature("step size 1", "the probabilities differ from those of overlapping tiles; masks are valid"),
}

MAIN_FEATURES = ("2d", "3d_fullres", "cascade", "regions", "ignore", "png_rgb", "anisotropic", "continue")
"""Features with which the networks that papers compare with are tested."""
REFUSED = {("MONAIVNetTrainer", "cascade"), ("MONAIVNetTrainer", "png_rgb")}
"""Cells that a network does not support."""

INTEGRATION = {
    "integration_ignore": Feature("Dataset998, ignore label", "all steps, including the cascade of two configurations"),
    "integration_regions": Feature("Dataset997, regions", "as above"),
    "integration_regions_ignore": Feature("Dataset996, regions and ignore label", "as above"),
}


@dataclass(frozen=True)
class Cell:
    """The outcome of a test, as a row of the results table; `started` is ``commands`` or ``forks``."""

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

This page is generated by `python -m benchmarks.page.feature_matrix` from
[the tests' outcomes](../benchmarks/results/feature_matrix.csv). A tick stands for a passing test in `tests/features`
that ran nnU-Net's console commands on the shipped scans, with small patches and one epoch, on the CPU. {started}.
Versions: {versions}.{missing}
"""

_BASELINES_HEAD = """
## Networks that papers compare with

The main features with the [networks by MONAI](baselines.md), on patches whose sizes are multiples of 32. V-Net takes 1,
2, 4, 8 or 16 channels only, and colours or the labels of a cascade's first stage are others.
"""

_INTEGRATION_HEAD = """
## nnU-Net's own integration tests

These tests use nnU-Net's own integration datasets, which its own code makes from the shipped scans, and its own steps:
planning with an added low resolution and cascade, preprocessing, training five folds of four configurations, finding
the best configuration or ensemble, and predicting with it. Patches are small.
"""


_TABLES: tuple[tuple[tuple[str, ...], dict[str, Feature], tuple[str, ...]], ...] = (
    ((), FEATURES, TRAINERS),
    ((_BASELINES_HEAD,), {name: FEATURES[name] for name in MAIN_FEATURES}, BASELINES),
    ((_INTEGRATION_HEAD,), INTEGRATION, INTEGRATION_TRAINERS),
)
"""Lines before the table, its rows and its columns."""


def cell(trainer: str, feature: str, outcome: str, seconds: float, started: str) -> Cell:
    """The outcome of a test that ran now, with the current code."""
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
    """Cells by trainer and feature; if one occurs twice, the later row counts."""
    with path.open() as file:
        rows = [Cell(**row | {"seconds": float(row["seconds"])}) for row in csv.DictReader(file)]
    return {(row.trainer, row.feature): row for row in rows}


def append(path: Path, row: Cell) -> None:
    """Appends a row to a file and creates the file if it does not exist."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = _writer(file)
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


def write(path: Path, cells: Iterable[Cell]) -> None:
    """Writes all cells, in the page's order."""
    order, trainers = [*FEATURES, *INTEGRATION], [*TRAINERS, *BASELINES]
    with path.open("w", newline="") as file:
        writer = _writer(file)
        writer.writeheader()
        for row in sorted(cells, key=lambda c: (order.index(c.feature), trainers.index(c.trainer))):
            writer.writerow(asdict(row))


def expected_cells() -> list[tuple[str, str]]:
    """Trainer and feature of every cell that the page should have."""
    cells = [(trainer, feature) for _, features, trainers in _TABLES for feature in features for trainer in trainers]
    return [cell for cell in cells if cell not in REFUSED]


def page(cells: dict[tuple[str, str], Cell]) -> str:
    """The text of docs/features.md with the outcome of every cell, ``?`` where there is none."""
    number = len(expected_cells()) - len(cells)
    missing = f"\n\n{number} cells have not been run yet; they show a question mark." if number else ""
    versions = "; ".join(_range(name, cells) for name in ("nnunetv2", "torch", "python", "date"))
    lines = [
        _HEAD.format(versions=versions, started=_started(cells), missing=missing),
        *(line for head, *table in _TABLES for line in (*head, *_table(*table, cells))),
        "\n## What each test checks\n\nEvery test checks that the commands succeed, and in addition:\n",
        *(f"* {feature.title}: {feature.checked}." for feature in FEATURES.values()),
    ]
    return "\n".join(lines) + "\n"


def _table(
    features: dict[str, Feature], trainers: tuple[str, ...], cells: dict[tuple[str, str], Cell]
) -> Iterable[str]:
    yield "| | " + " | ".join(trainer.replace("Trainer", "", 1) for trainer in trainers) + " |"
    yield "|---" * (len(trainers) + 1) + "|"
    for key, feature in features.items():
        yield f"| {feature.title} | " + " | ".join(_mark(cells, (trainer, key)) for trainer in trainers) + " |"


def _mark(cells: dict[tuple[str, str], Cell], key: tuple[str, str]) -> str:
    if key in REFUSED:
        return "no"
    return "?" if key not in cells else "✓" if cells[key].outcome == PASSED else cells[key].outcome


def _started(cells: dict[tuple[str, str], Cell]) -> str:
    forks = sum(row.started == "forks" for row in cells.values())
    if forks == 0:
        return "Each command was a new process"
    number = f"all {forks}" if forks == len(cells) else f"{forks} of {len(cells)}"
    others = "" if forks == len(cells) else "; in the others, each was a new process"
    return (
        f"In {number} cells, each command was a fork of a process that had already\nimported nnU-Net "
        f"(`NNUNET_EXT_FORKED=1`), with the same entry point and arguments{others}"
    )


def _range(name: str, cells: dict[tuple[str, str], Cell]) -> str:
    values = sorted({getattr(row, name) for row in cells.values()})
    return f"{name} " + (values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}" if values else "unknown")


def _writer(file) -> csv.DictWriter:
    return csv.DictWriter(file, [field.name for field in fields(Cell)], lineterminator="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", type=Path, help="files that the tests have written")
    cells = read(RESULTS) if RESULTS.is_file() else {}
    for part in parser.parse_args().parts:
        cells |= read(part)
    write(RESULTS, cells.values())
    PAGE.write_text(page(cells))


if __name__ == "__main__":
    main()
