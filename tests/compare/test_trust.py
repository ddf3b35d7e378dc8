"""Warnings about trainings and folds, on the numbers that set them off and on those that do not."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_ext.compare.report.trust import rise, warnings
from nnunet_ext.nnunet.training_log import TrainingLog


def log_of(values):
    return TrainingLog(epochs={number: {"pseudo_dice": value} for number, value in enumerate(values)})


def test_a_training_that_still_improves_is_told_from_one_that_does_not():
    assert rise(log_of([0.5] * 80 + [0.6] * 10 + [0.65] * 10)) == pytest.approx(0.05)
    assert rise(log_of([0.5] * 100)) == 0
    assert np.isnan(rise(log_of([0.1, 0.5])))


def outcome(verdict="better", differences=(0.1, 0.1, 0.1), epochs=1000, curve=(0.8,) * 100):
    cases = {f"case {i}": SimpleNamespace(fold=str(i)) for i in range(len(differences))}
    comparison = SimpleNamespace(verdict=verdict, estimate=SimpleNamespace(mean=float(np.mean(differences))))
    return SimpleNamespace(
        study=SimpleNamespace(cases=cases, challengers=["A"]),
        analysis=SimpleNamespace(
            primary=lambda name: comparison, case_differences={"A": np.array(differences, dtype=float)}
        ),
        costs={"A": SimpleNamespace(epochs=epochs)},
        logs={"A": {"0": log_of(curve)}},
    )


def test_a_converged_training_whose_folds_agree_gives_no_warning():
    assert warnings(outcome()) == []
    assert warnings(outcome(verdict="inconclusive", differences=(0.1, -0.1, 0.1))) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 3}, "Trained for fewer than 50 epochs: A (3)"),
        ({"curve": [0.5] * 90 + [0.6] * 10}, "A by up to 10.00 points"),
        ({"differences": (0.3, -0.1, 0.2)}, "fold 1 points the other way"),
        ({"differences": (0.3, -0.1, -0.1)}, "folds 1, 2 point the other way"),
    ],
)
def test_each_warning_names_its_numbers(changes, text):
    (warning,) = warnings(outcome(**changes))
    assert text in warning


def test_the_report_warns_of_three_epochs(report):
    notes = json.loads((report / "summary.json").read_text())["notes"]
    assert any(note.startswith("Trained for fewer than 50 epochs: nnUNetTrainer (3)") for note in notes)
    for name in ("report.md", "report.html"):
        assert "Trained for fewer than 50 epochs" in (report / name).read_text()
