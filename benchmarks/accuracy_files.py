"""The CSV files of measured accuracy: their trainings, and the verdicts on all of them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import write_csv
from benchmarks.page.result_files import Results
from nnunet_ext.compare.analysis import Comparison, analyse
from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.metrics import METRICS
from nnunet_ext.compare.settings import Settings
from nnunet_ext.compare.study import Case, Method, Study

TRAINERS = (
    "StockTrainer",
    "SASANTrainer",
    "EMNetTrainer",
    "EMNetSGDTrainer",
    "SASANTrainerDiceCE",
    "LSTMSATrainer",
    "SALSTMTrainer",
    "EMNetNoMambaTrainer",
    "EMNetAuthorsTrainer",
    "FAFNetTrainer",
)
_SETTING = ("fold", "iterations", "batch_size", "patch", "spacing_mm")
"""Columns that must be equal in all rows of a file."""


def merge(path: Path, rows: Sequence[dict[str, Any]], *, add: bool = False) -> None:
    """Writes rows to a CSV file, replacing the older rows of their trainers, or with `add` of their repeats alone.

    Raises:
        ValueError: if the other rows in the file were trained with another setting, because they would be compared.
    """
    new = {training_of(row) if add else row["trainer"] for row in rows}
    kept = [row for row in rows_in(path) if (training_of(row) if add else row["trainer"]) not in new]
    for old in kept:
        differing = [key for key in _SETTING if key in rows[0] and old[key] != str(rows[0][key])]
        if differing:
            said = ", ".join(f"{key} {old[key]} instead of {rows[0][key]}" for key in differing)
            raise ValueError(f"{path} has rows of {old['trainer']} with {said}: give these results another --name")
    write_csv(path, sorted([*kept, *rows], key=lambda row: (place(row["trainer"]), training_of(row)[1])), where={})


def numbers_of(path: Path, trainings: Sequence[dict[str, Any]]) -> list[int]:
    """Numbers for trainings as repeats: that of the file, by the checkpoint's sha256, or the next one of the trainer.

    Args:
        path: The CSV file.
        trainings: One row of each.
    """
    there = rows_in(path)
    known = {row["checkpoint_sha256"]: training_of(row)[1] for row in there}
    taken = {training_of(row) for row in there}
    numbers = []
    for row in trainings:
        number = known.get(row["checkpoint_sha256"])
        if number is None:
            number = 1 + max((repeat for trainer, repeat in taken if trainer == row["trainer"]), default=0)
        taken.add((row["trainer"], number))
        numbers.append(number)
    return numbers


def rows_in(path: Path) -> list[dict[str, str]]:
    return Results(path.parent).rows(path.stem)


def training_of(row: Mapping[str, Any]) -> tuple[str, int]:
    """Trainer and number of the training; files of one training each used to have no such number."""
    return str(row["trainer"]), int(row.get("repeat") or 1)


def verdicts(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Verdict on every trainer's mean Dice, with the difference to the baseline and its interval.

    It is the analysis of `nnunet_ext compare`, given the Dice of every case. Trainers may have different numbers of
    trainings. The baseline is StockTrainer or, without it, the first of the others.

    Args:
        cases: Rows of accuracy_NAME_cases.csv, of one fold.
    """
    scores = pd.DataFrame([{**row, "repeat": training_of(row)[1]} for row in cases])
    trainers = sorted(scores["trainer"].unique(), key=place)
    if len(trainers) < 2:
        return {}
    dice = scores["dice"].astype(float)
    scores = scores.rename(columns={"trainer": "entrant"}).assign(**dict.fromkeys(METRICS, np.nan))
    # nnU-Net's Dice does not exist where neither the truth nor the prediction has the label.
    there = dice.notna().to_numpy()
    scores = scores.assign(dice=dice, truth_voxels=there, predicted_voxels=there)
    fold, nowhere = str(cases[0]["fold"]), Path()
    of_case = {name: Case(name, fold, nowhere, nowhere, None) for name in sorted(scores["case"].unique())}
    labels = LabelSet({name: 1 + i for i, name in enumerate(scores["label"].unique())}, None, "", "")
    methods = [Method(name, of_case, name) for name in trainers]
    analysis = analyse(Study("", methods, trainers[0], labels, [fold]), scores, Settings())
    return {name: {"baseline": trainers[0]} | _shown(analysis.primary(name)) for name in trainers[1:]}


def judge(totals: Path, cases: Path) -> None:
    """Writes the verdicts on all trainings of the two CSV files to the first one's rows of mean Dice."""
    judged = verdicts(rows_in(cases))
    columns = dict.fromkeys((key for found in judged.values() for key in found), "")
    rows = [
        {**row, **columns, **(judged.get(row["trainer"], {}) if row["label"] == "mean" else {})}
        for row in rows_in(totals)
    ]
    write_csv(totals, rows, where={})


def _shown(found: Comparison) -> dict[str, str]:
    """Columns of a comparison."""
    values = {
        "difference": found.estimate.mean,
        "interval_low": found.estimate.low,
        "interval_high": found.estimate.high,
        "p_holm": found.p_holm,
    }
    holds = "yes" if found.estimate.new_trainings else "no"
    return {"verdict": str(found.verdict), "holds_for_new_trainings": holds} | {
        key: f"{value:.4f}" if math.isfinite(value) else "" for key, value in values.items()
    }


def place(trainer: str) -> tuple[int, str]:
    """The trainer's position in tables."""
    return TRAINERS.index(trainer) if trainer in TRAINERS else len(TRAINERS), trainer
