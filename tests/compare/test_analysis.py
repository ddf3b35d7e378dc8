"""Pairs, dropped cases and families of tests, on scores made by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunet_ext.compare.analysis import MEAN, analyse
from nnunet_ext.compare.inference import estimate
from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.metrics import METRICS
from nnunet_ext.compare.report.summary_json import summary
from nnunet_ext.compare.report.tables import result_table
from nnunet_ext.compare.report.text import headline, reason, sentence
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.settings import Settings
from nnunet_ext.compare.statistics import holm
from nnunet_ext.compare.study import Case, Method, Study

LABELS = LabelSet({"a": 1, "b": 2}, None, ".nii.gz", "SimpleITKIO")
NAN = float("nan")


def study_of(values, absent=()):
    """Methods by name with Dice by cases and labels; the first is the baseline.

    `absent` holds pairs of case and label that the truth does not have; NaN is an empty prediction there.
    """
    count = len(next(iter(values.values())))
    cases = {f"c{i}": Case(f"c{i}", str(i % 5), Path(), Path(), None) for i in range(count)}
    study = Study("made", [Method(name, cases) for name in values], next(iter(values)), LABELS, list("01234"))
    rows = [
        {"entrant": name, "repeat": 1, "case": f"c{i}", "fold": str(i % 5), "label": label}
        | {"truth_voxels": int((i, label) not in absent), "predicted_voxels": int(not np.isnan(value))}
        | dict.fromkeys(METRICS, value)
        for name, table in values.items()
        for i, row in enumerate(table)
        for label, value in zip("ab", row, strict=True)
    ]
    return study, pd.DataFrame(rows)


def analysed(values, absent=(), **settings):
    return analyse(*study_of(values, absent), Settings(**settings))


ABSENT = {(1, "a"), (2, "a"), (2, "b")}
ABSENT_VALUES = {
    "base": [[0.8, 0.6], [NAN, 0.5], [NAN, NAN], [0.7, 0.7]],
    "other": [[0.9, 0.8], [0.0, 0.6], [0.0, NAN], [0.7, 0.8]],
}


def test_labels_that_a_case_does_not_have_score_one_or_zero():
    """BraTS' rule: an empty prediction scores 1, any other 0; no case is dropped."""
    result = analysed(ABSENT_VALUES, ABSENT)
    assert result.case_differences["other"] == pytest.approx([0.15, 0.3 - 0.75, 0.5 - 1, 0.05])
    found = result.primary("other")
    assert (found.estimate.cases, found.dropped) == (4, 0)
    assert result.comparisons["other", "dice", "a"].baseline == pytest.approx((0.8 + 1 + 1 + 0.7) / 4)
    assert result.comparisons["other", "hd95", "a"].baseline == pytest.approx((0.8 + 0 + 0 + 0.7) / 4)
    for (name, metric, label), comparison in result.comparisons.items():
        assert comparison.own == result.means[name, metric, label]
        assert comparison.baseline == result.means["base", metric, label]
        assert comparison.own - comparison.baseline == pytest.approx(comparison.estimate.mean)
    # nnU-Net's own: means of labels over the cases that have a value.
    assert result.nnunet_means["base"] == pytest.approx(((0.8 + 0.7) / 2 + (0.6 + 0.5 + 0.7) / 3) / 2)


def test_labels_that_a_case_does_not_have_are_left_out_for_everyone_with_the_other_rule():
    result = analysed(ABSENT_VALUES, ABSENT, empty_labels="rate")
    assert result.case_differences["other"] == pytest.approx([0.15, 0.1, NAN, 0.05], nan_ok=True)
    found = result.primary("other")
    assert (found.estimate.cases, found.dropped) == (3, 1)
    assert result.comparisons["other", "dice", "a"].estimate.cases == 2
    rate = result.false_positive_rates["other", "a"]
    assert (rate.baseline, rate.own, rate.estimate.cases) == (0, 1, 2)
    assert result.false_positive_rates["other", "b"].own == 0


def test_what_is_left_out_does_not_depend_on_predictions():
    """Whatever is predicted where the truth is empty, pairs stay the same."""
    for rule in ("score", "rate"):
        counts = set()
        for value in (NAN, 0.0):
            changed = {"base": ABSENT_VALUES["base"], "other": [[0.9, 0.8], [value, 0.6], [value, value], [0.7, 0.8]]}
            result = analysed(changed, ABSENT, empty_labels=rule)
            counts.add(tuple(c.estimate.cases for c in result.comparisons.values()))
        assert len(counts) == 1


def test_a_tumour_in_every_healthy_case_is_worse():
    """100 cases, half of them healthy; the challenger finds a tumour in all of them and is otherwise equally good."""
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.8, 0.9, 100)
    absent = {(i, label) for i in range(0, 100, 2) for label in "ab"}
    base = [[NAN, NAN] if i % 2 == 0 else [s, s] for i, s in enumerate(scores)]
    other = [[0.0, 0.0] if i % 2 == 0 else [s, s] for i, s in enumerate(scores)]
    study, table = study_of({"base": base, "other": other}, absent)
    cases = {name: Case(name, str(int(name[1:]) // 20), Path(), Path(), None) for name in study.cases}
    study = Study("made", [Method(m.name, cases) for m in study.methods], "base", LABELS, list("01234"))
    result = analyse(study, table, Settings())
    assert result.primary("other").verdict == "worse"
    assert result.primary("other").estimate.mean == pytest.approx(-0.5)
    rated = analyse(study, table, Settings(empty_labels="rate"))
    assert rated.primary("other").estimate.mean == 0
    rate = rated.false_positive_rates["other", "a"]
    assert (rate.baseline, rate.own) == (0, 1)
    assert rate.p_holm < 0.001


def test_holms_family_are_the_challengers():
    generator = np.random.default_rng(0)
    base = generator.uniform(0.7, 0.9, (12, 2))
    values = {"base": base} | {n: base + generator.normal(m, 0.02, (12, 2)) for n, m in (("x", 0.02), ("y", 0.01))}
    result = analysed(values)
    folds = [str(i % 5) for i in range(12)]
    for label, of in ((MEAN, lambda t: t.mean(axis=1)), ("b", lambda t: t[:, 1])):
        plain = [estimate(of(values[name]) - of(base), folds, 0.005, resamples=0).p for name in ("x", "y")]
        found = [result.comparisons[name, "dice", label] for name in ("x", "y")]
        assert [each.estimate.p for each in found] == plain
        assert [each.p_holm for each in found] == holm(plain)


def test_only_dice_gives_a_verdict():
    result = analysed({"base": [[0.5, 0.5]] * 8, "other": [[0.6 + i / 100, 0.6] for i in range(8)]})
    assert result.primary("other").verdict == "better"
    for metric in METRICS:
        assert (result.comparisons["other", metric, MEAN].verdict is None) == (metric != "dice")


def test_equal_predictions_are_equivalent_from_five_cases_on():
    for cases, expected in ((4, "inconclusive"), (5, "equivalent")):
        table = [[0.5 + i / 100, 0.5] for i in range(cases)]
        assert analysed({"base": table, "other": table}).primary("other").verdict == expected


def outcome_of(values):
    study, scores = study_of(values)
    settings = Settings()
    return Outcome(study, settings, scores, analyse(study, scores, settings), {}, {})


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
        "up is better than base; down is worse than base; same and slightly are equivalent to base; open is "
        "inconclusive."
    )
    assert sentence(outcome, "up").startswith("better, +4.98 Dice points (95% interval +")
    assert "The interval lies above zero, and the tests agree: p\N{NO-BREAK SPACE}<" in reason(outcome, "up")
    assert "The interval lies below zero" in reason(outcome, "down")
    assert "lies within ±0.50 points, and the tests against that margin reject" in reason(outcome, "same")
    assert "A difference is shown" not in reason(outcome, "same")
    assert reason(outcome, "slightly").endswith("but it is smaller than the margin.")
    assert reason(outcome, "open").startswith("No difference is shown (p")


def test_sides_that_disagree_are_put_into_words():
    base = np.full((36, 2), 0.5)
    other = base + np.array([[-0.001 - i / 1e6] * 2 for i in range(30)] + [[0.2 + i / 1e3] * 2 for i in range(6)])
    outcome = outcome_of({"base": base, "other": other})
    assert headline(outcome) == "Inconclusive: other against base."
    assert reason(outcome, "other").startswith(
        "No difference is shown: the mean and the signed ranks point in opposite directions (p"
    )


def test_a_label_may_be_called_mean():
    """A label called mean keeps its own numbers, and summary.json tells it from the mean of labels."""
    generator = np.random.default_rng(0)
    base = generator.uniform(0.7, 0.9, (12, 2))
    study, scores = study_of({"base": base, "other": base + np.array([0.1, 0.0])})
    scores["label"] = scores["label"].replace({"a": "mean"})
    labels = LabelSet({"mean": 1, "b": 2}, None, ".png", "NaturalImage2DIO")
    study = Study("made", study.methods, "base", labels, study.folds)
    outcome = Outcome(study, Settings(), scores, analyse(study, scores, Settings()), {}, {})
    found = {
        (c["label"], c["mean_of_labels"]): c["difference"]
        for c in summary(outcome)["comparisons"]
        if c["metric"] == "dice"
    }
    assert found["mean", False] == pytest.approx(0.1)
    assert found["mean", True] == pytest.approx(0.05)
    assert found["b", False] == pytest.approx(0)
    # Natural images have pixels, no millimetres.
    heads = result_table(outcome).heads
    assert {"HD95, pixels", "ASSD, pixels", "Volume error, 1000 pixels"} <= set(heads)


@pytest.mark.parametrize("folds", ["01234", "0"])
def test_supports_that_methods_share_cancel_in_their_difference(folds):
    """Other trainings of each method vary on their own; the same supports move both methods alike."""
    generator = np.random.default_rng(0)
    moved = generator.normal(0, 0.1, (4, 5))
    study, scores = study_of({name: np.zeros((20, 2)) for name in ("base", "other")})
    study = replace(study, folds=list(folds))
    for case in study.cases.values():
        object.__setattr__(case, "fold", folds[int(case.fold) % len(folds)])
    repeats = [scores.assign(repeat=number) for number in range(1, 5)]
    for number, table in enumerate(repeats):
        fold = table["case"].str[1:].astype(int) % len(folds)
        extra = np.where(table["entrant"] == "other", 0.1 + 0.01 * generator.normal(size=len(table)), 0)
        table["fold"] = fold.map(dict(enumerate(folds)))
        table["dice"] = 0.5 + moved[number, fold.to_numpy()] + extra
    scores = pd.concat(repeats)
    alone, shared = (
        analyse(replace(study, supports=supports), scores, Settings()).primary("other").estimate
        for supports in (False, True)
    )
    assert alone.mean == shared.mean == pytest.approx(0.1, abs=0.01)
    assert alone.high - alone.low > 5 * (shared.high - shared.low)
    # Other trainings of one fold say how much trainings differ, other supports of one training do not.
    assert alone.new_trainings
    assert shared.new_trainings == (len(folds) > 1)
