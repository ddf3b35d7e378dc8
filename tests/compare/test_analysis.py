"""Pairs, drops and families, on scores made by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_ext.compare.analysis import MEAN, analyse
from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.metrics import METRICS
from nnunet_ext.compare.report.text import headline, reason, sentence
from nnunet_ext.compare.result import Outcome, Settings
from nnunet_ext.compare.statistics import estimate, holm
from nnunet_ext.compare.study import Case, Entrant, Study

LABELS = LabelSet({"a": 1, "b": 2}, None, ".nii.gz", "SimpleITKIO")
NAN = float("nan")


def study_of(values):
    """Entrants by name with Dice by cases and labels; the first is the baseline."""
    count = len(next(iter(values.values())))
    cases = {f"c{i}": Case(f"c{i}", str(i % 2), Path(), Path(), None) for i in range(count)}
    study = Study("made", [Entrant(name, cases) for name in values], next(iter(values)), LABELS, ["0", "1"])
    rows = [
        {"entrant": name, "case": f"c{i}", "fold": str(i % 2), "label": label, "truth_voxels": 1, "predicted_voxels": 1}
        | dict.fromkeys(METRICS, value)
        for name, table in values.items()
        for i, row in enumerate(table)
        for label, value in zip("ab", row, strict=True)
    ]
    return study, pd.DataFrame(rows)


def analysed(values):
    return analyse(*study_of(values), margin=0.005, seed=0)


def test_a_label_that_one_of_both_lacks_leaves_the_pair():
    """In the second case only label b is compared, in the third nothing."""
    result = analysed(
        {
            "base": [[0.8, 0.6], [NAN, 0.5], [NAN, NAN], [0.7, 0.7]],
            "other": [[0.9, 0.8], [0.0, 0.6], [0.4, 0.4], [0.7, 0.8]],
        }
    )
    assert result.case_differences["other"] == pytest.approx([0.15, 0.1, NAN, 0.05], nan_ok=True)
    found = result.primary("other")
    assert (found.estimate.cases, found.dropped) == (3, 1)
    assert found.estimate.mean == pytest.approx(0.1)
    assert found.own - found.baseline == pytest.approx(0.1)
    assert result.comparisons["other", "dice", "a"].estimate.cases == 2
    assert result.comparisons["other", "dice", "b"].dropped == 1
    # Means of an entrant by itself are over everything that it has.
    assert result.means["other", "dice", "a"] == pytest.approx(0.5)
    assert result.means["base", "dice", MEAN] == pytest.approx((0.7 + 0.5 + 0.7) / 3)


def test_holms_family_are_the_challengers():
    generator = np.random.default_rng(0)
    base = generator.uniform(0.7, 0.9, (12, 2))
    values = {"base": base} | {n: base + generator.normal(m, 0.02, (12, 2)) for n, m in (("x", 0.02), ("y", 0.01))}
    result = analysed(values)
    folds = [str(i % 2) for i in range(12)]
    for label, of in ((MEAN, lambda t: t.mean(axis=1)), ("b", lambda t: t[:, 1])):
        plain = [estimate(of(values[name]) - of(base), folds, 0.005, 0).p for name in ("x", "y")]
        found = [result.comparisons[name, "dice", label] for name in ("x", "y")]
        assert [each.estimate.p for each in found] == plain
        assert [each.p_holm for each in found] == holm(plain)


def test_only_dice_gives_a_verdict():
    result = analysed({"base": [[0.5, 0.5]] * 8, "other": [[0.6 + i / 100, 0.6] for i in range(8)]})
    assert result.primary("other").verdict == "better"
    for metric in METRICS:
        assert (result.comparisons["other", metric, MEAN].verdict is None) == (metric != "dice")


def test_equal_predictions_are_equivalent_from_five_cases_on():
    for cases, expected in ((4, "undecided"), (5, "equivalent")):
        table = [[0.5 + i / 100, 0.5] for i in range(cases)]
        assert analysed({"base": table, "other": table}).primary("other").verdict == expected


def outcome_of(values):
    study, scores = study_of(values)
    settings = Settings()
    return Outcome(study, settings, scores, analyse(study, scores, settings.margin, settings.seed), {}, {})


def test_every_verdict_is_put_into_words():
    generator = np.random.default_rng(0)
    base = generator.uniform(0.7, 0.9, (40, 2))

    def shifted(mean, spread):
        return base + generator.normal(mean, spread, (40, 2))

    outcome = outcome_of(
        {
            "base": base,
            "up": shifted(0.05, 0.02),
            "down": shifted(-0.05, 0.02),
            "same": shifted(0, 0.002),
            "slightly": shifted(0.002, 0.001),
            "open": shifted(0.004, 0.05),
        }
    )
    assert headline(outcome) == (
        "up is better than base; down is worse than base; same and slightly are equivalent to base; for open it is "
        "undecided."
    )
    assert sentence(outcome, "up").startswith("better, +4.98 Dice points (95% interval +")
    assert "The interval lies above zero, and the signed-rank test agrees: p\N{NO-BREAK SPACE}<" in reason(
        outcome, "up"
    )
    assert "The interval lies below zero" in reason(outcome, "down")
    assert "within ±0.50 points, and the test against that margin rejects" in reason(outcome, "same")
    assert "A difference is shown" not in reason(outcome, "same")
    assert reason(outcome, "slightly").endswith("but one smaller than the margin.")
    assert reason(outcome, "open").startswith("Neither is a difference shown (p")


def test_sides_that_disagree_are_put_into_words():
    base = np.full((36, 2), 0.5)
    other = base + np.array([[-0.001 - i / 1e6] * 2 for i in range(30)] + [[0.2 + i / 1e3] * 2 for i in range(6)])
    outcome = outcome_of({"base": base, "other": other})
    assert headline(outcome) == "Undecided: other against base."
    assert reason(outcome, "other").startswith("The mean and the signed ranks speak for different sides (p")
