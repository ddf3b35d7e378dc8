"""The table's numbers, from scores with known answers."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nnunet_ext.compare.mixed_model import fit, training_noise
from nnunet_ext.compare.settings import Settings
from nnunet_ext.crossval.fewshot.table import MEAN_OF_CLASSES, as_rows, as_table, dice_rows, lines

FOLDS, PATIENTS, SUPPORTS = 2, 6, 3
METHODS, LABELS = ("trained", "copied"), ("rod", "ball")


def outcome(dice):
    """An outcome with the Dice of a function of method, label, fold, patient, frame and support."""
    cases = {
        f"f{fold}p{patient}_{frame}": SimpleNamespace(name=f"f{fold}p{patient}_{frame}", fold=str(fold))
        for fold in range(FOLDS)
        for patient in range(PATIENTS)
        for frame in range(2)
    }
    rows = [
        {
            "entrant": method,
            "repeat": support,
            "case": name,
            "fold": case.fold,
            "label": label,
            "dice": dice(method, label, int(name[1]), int(name[3]), int(name[5]), support),
        }
        for method in METHODS
        for support in range(1, SUPPORTS + 1)
        for name, case in cases.items()
        for label in LABELS
    ]
    study = SimpleNamespace(
        methods=[SimpleNamespace(name=name) for name in METHODS],
        cases=cases,
        folds=["0", "1"],
        labels=SimpleNamespace(labels={"rod": 1, "ball": 2}),
        groups={name: name[:4] for name in cases},
    )
    return SimpleNamespace(study=study, scores=pd.DataFrame(rows), settings=Settings(seed=0))


def by_name(found):
    return {(line.label, line.method): line for line in found}


def test_without_spread_all_intervals_are_the_mean():
    found = by_name(lines(outcome(lambda method, label, *_: 0.25 if (method, label) == ("copied", "ball") else 0.75)))
    assert list(found)[-1] == (MEAN_OF_CLASSES, "copied")
    for key, expected in {("rod", "copied"): 0.75, ("ball", "copied"): 0.25, (MEAN_OF_CLASSES, "copied"): 0.5}.items():
        line = found[key]
        assert (line.mean, line.folds, line.cases) == (expected, (expected, expected), 24)
        for interval in (line.over_patients, line.over_supports, line.overall):
            assert interval == pytest.approx((expected, expected), abs=1e-12)


def test_patients_and_supports_have_intervals_of_their_own():
    """Only patients differ, or only supports: the other interval has no width."""
    of_patients = by_name(lines(outcome(lambda method, label, fold, patient, frame, support: 0.4 + 0.05 * patient)))
    line = of_patients["rod", "trained"]
    assert line.over_supports == pytest.approx((line.mean, line.mean), abs=1e-12)
    # The bootstrap's standard error with 2 strata of 6 patients, and Student's t with 10 degrees of freedom.
    spread = np.std(0.05 * np.arange(PATIENTS), ddof=1) / np.sqrt(2 * PATIENTS)
    half = stats.t.ppf(0.975, 2 * (PATIENTS - 1)) * spread
    assert line.over_patients == pytest.approx((line.mean - half, line.mean + half), rel=0.02)

    line = by_name(lines(outcome(lambda method, label, fold, patient, frame, support: 0.1 * support)))["rod", "trained"]
    assert line.mean == pytest.approx(0.2)
    assert line.over_patients == pytest.approx((0.2, 0.2), abs=1e-12)
    assert line.over_supports[0] < 0.2 < line.over_supports[1]


def test_the_overall_interval_is_the_comparisons_mixed_model():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.05, (SUPPORTS + 1, FOLDS))
    found = outcome(lambda method, label, fold, patient, frame, support: 0.5 + noise[support, fold] + 0.02 * patient)
    line = by_name(lines(found))["ball", "copied"]
    rows = found.scores[(found.scores.entrant == "copied") & (found.scores.label == "ball")]
    table = rows.pivot(index="repeat", columns="case", values="dice")[list(found.study.cases)].to_numpy()
    folds = [case.fold for case in found.study.cases.values()]
    model = fit(table.mean(0), folds, list(found.study.groups.values()), training_noise([table], folds))
    assert line.overall == model.interval(0.05)
    assert line.folds == pytest.approx([table[:, :12].mean(), table[:, 12:].mean()])


def test_cases_without_a_class_do_not_count():
    nan = float("nan")
    found = by_name(
        lines(outcome(lambda method, label, fold, patient, *_: nan if patient < 4 and label == "ball" else 0.5))
    )
    assert (found["ball", "copied"].cases, found["ball", "copied"].mean) == (8, 0.5)
    assert (found[MEAN_OF_CLASSES, "copied"].cases, found[MEAN_OF_CLASSES, "copied"].mean) == (24, 0.5)
    nowhere = by_name(lines(outcome(lambda method, label, *_: nan if label == "ball" else 0.5)))["ball", "copied"]
    assert nowhere.cases == 0
    assert np.isnan([nowhere.mean, *nowhere.folds, *nowhere.overall]).all()


def test_the_files_have_one_row_per_line_and_per_segmented_case():
    result = outcome(lambda method, label, fold, patient, frame, support: 0.1 * support)
    found = lines(result)
    table = as_table(found, ["0", "1"])
    assert len(table.rows) == len(as_rows(found, ["0", "1"])) == 6
    assert all(len(row) == len(table.heads) for row in table.rows)
    assert table.rows[0][:3] == ["rod", "trained", "20.00"]
    supports = pd.DataFrame(
        [
            {"fold": str(fold), "repeat": repeat, "label": label, "support": f"s{fold}{repeat}{label}"}
            for fold in range(FOLDS)
            for repeat in range(1, SUPPORTS + 1)
            for label in LABELS
        ]
    )
    rows = dice_rows(result, supports)
    assert list(rows) == ["fold", "class", "repeat", "support", "case", "method", "dice"]
    assert len(rows) == len(result.scores)
    assert (rows.support == "s" + rows.fold + rows.repeat.astype(str) + rows["class"]).all()
