"""Lesions: counts by hand and as of panoptica, rules for cases without them, and the report."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nnunet_ext.cli.main import main
from nnunet_ext.compare.empty_labels import apply_rule
from nnunet_ext.compare.lesion_metrics import lesion_title
from nnunet_ext.compare.lesions import BAND_EDGES, BANDS, LesionCounts, count_lesions
from nnunet_ext.compare.metrics import case_scores

VOXEL = 0.04  # ml, so that the bands are separated by 2.5, 25 and 250 voxels
SHAPES = [(24, 30, 28), (60, 64)]
COMMITTED = Path(__file__).parent / "panoptica.json"
"""Results of panoptica 2.1.7 for `masks`, by `detected`."""


def boxes(generator, shape, count):
    """Overlapping boxes of up to six voxels along each axis."""
    mask = np.zeros(shape, dtype=bool)
    for _ in range(count):
        start, size = (
            [int(generator.integers(low, high)) for high in highs] for low, highs in ((0, shape), (1, [7] * len(shape)))
        )
        mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def masks(shape, seed):
    """A truth, and a prediction that is moved, has holes and false positives."""
    generator = np.random.default_rng(seed)
    truth = boxes(generator, shape, 12)
    moved = np.roll(truth, [int(generator.integers(-1, 2)) for _ in shape], range(len(shape)))
    return truth, (moved & ~boxes(generator, shape, 6)) | boxes(generator, shape, 3)


def detected(shape, seed):
    """The counts of panoptica, an independent implementation."""
    panoptica = pytest.importorskip("panoptica")
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(),
        instance_metrics=[panoptica.Metric.IOU],
        global_metrics=[],
    )
    truth, prediction = (mask.astype(np.uint8) for mask in masks(shape, seed))
    (result,) = evaluator.evaluate(prediction, truth, voxelspacing=(1.0,) * len(shape)).values()
    bands = result.recall_by_volume([edge / VOXEL for edge in BAND_EDGES], "voxel_count").values()
    return {
        "shape": list(shape),
        "seed": seed,
        "counts": [int(count) for count in (result.n_ref_instances, result.n_pred_instances, result.tp)],
        "recall, precision, F1": [float(result.rec), float(result.prec), float(result.rq)],
        "recall by volume": [None if np.isnan(recall) else float(recall) for recall in bands],
    }


def scored(rows, rule="score"):
    """The metrics of rows of true, found (by band) and predicted lesions; no lesion is a case without the label."""
    frame = pd.DataFrame([LesionCounts(*row).columns() for row in rows])
    frame["truth_voxels"] = [sum(true) for true, _, _ in rows]
    frame["predicted_voxels"] = [predicted for _, _, predicted in rows]
    return apply_rule(frame.assign(dice=0.5, nsd=0.5, hd95=1.0, assd=1.0, volume_error=0.0), rule)


@pytest.mark.parametrize("row", json.loads(COMMITTED.read_text()), ids=lambda row: f"{row['shape']}, {row['seed']}")
def test_agrees_with_panoptica(row):
    """Numbers, recall, precision, F1 and recall by volume, in 2D and 3D."""
    counts = count_lesions(*masks(tuple(row["shape"]), row["seed"]), VOXEL)
    assert [sum(counts.true), counts.predicted, sum(counts.found)] == row["counts"]
    result = scored([(counts.true, counts.found, counts.predicted)]).iloc[0]
    found = [result[f"lesion_{key}"] for key in ("recall", "precision", "f1")]
    assert found == pytest.approx(row["recall, precision, F1"])
    expected = [np.nan if recall is None else recall for recall in row["recall by volume"]]
    assert [result[f"lesion_recall_{band}"] for band in BANDS] == pytest.approx(expected, nan_ok=True)


@pytest.mark.filterwarnings("ignore")
def test_the_committed_results_are_panopticas():
    """Needs panoptica, which cannot be installed beside current versions of NumPy and pandas without --no-deps."""
    rows = [detected(shape, seed) for shape in SHAPES for seed in range(6)]
    assert rows == json.loads(COMMITTED.read_text())


def test_by_hand():
    """Two of three lesions are found: one exactly, one with half of the union; a fourth prediction is false."""
    truth, prediction = (np.zeros((8, 20, 20), dtype=bool) for _ in range(2))
    truth[1:3, 1:3, 1:3] = prediction[1:3, 1:3, 1:3] = True  # 8 voxels
    truth[1:3, 8:12, 1:5], prediction[1:3, 8:10, 1:5] = True, True  # 32 and 16 of them
    truth[6, 15, 15] = True
    prediction[6, 2:4, 17] = True
    counts = count_lesions(truth, prediction, VOXEL)
    assert counts == LesionCounts((1, 1, 1, 0), (0, 1, 1, 0), 3)
    prediction[1, 8, 1] = False  # now 15 of 32
    assert count_lesions(truth, prediction, VOXEL).found == (0, 1, 0, 0)


def test_components_touch_at_corners_in_volumes_only():
    corner = np.zeros((3, 3, 3), dtype=bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert sum(count_lesions(corner, corner, 1).true) == 1
    assert sum(count_lesions(corner[0] | corner[1], corner[0], 1).true) == 2


def test_rules_for_cases_without_lesions():
    """Rows: half found, nothing predicted, no lesion and none predicted, no lesion and one predicted."""
    none = (0, 0, 0, 0)
    rows = [((2, 0, 0, 0), (1, 0, 0, 0), 1), ((0, 3, 0, 0), none, 0), (none, none, 0), (none, none, 1)]
    columns = ["lesion_recall", "lesion_precision", "lesion_f1", "lesion_recall_1", "lesion_recall_2"]
    nan = float("nan")
    expected = [[0.5, 1, 2 / 3, 0.5, nan], [0, 0, 0, nan, 0], [nan, 1, 1, nan, nan], [nan, 0, 0, nan, nan]]
    assert scored(rows)[columns].to_numpy() == pytest.approx(np.array(expected), nan_ok=True)
    rated = np.array([*expected[:2], [nan] * 5, [nan] * 5])
    assert scored(rows, "rate")[columns].to_numpy() == pytest.approx(rated, nan_ok=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), damage=st.sampled_from(["false positive", "removed"]), volume=st.booleans())
def test_damage_never_improves_the_detection(seed, damage, volume):
    """One more predicted lesion far from all others, or a found lesion that is no longer predicted."""
    truth, prediction = masks(SHAPES[0] if volume else SHAPES[1], seed)
    worse = prediction.copy()
    if damage == "false positive":
        away = ndimage.binary_dilation(truth | prediction, iterations=2, structure=np.ones((3,) * truth.ndim))
        free = np.argwhere(~away)
        worse[tuple(free[seed % len(free)])] = True
    else:
        numbered, _ = ndimage.label(prediction, np.ones((3, 3, 3)) if volume else None)
        inside = np.unique(numbered[truth & prediction])
        worse[numbered == (inside[seed % len(inside)] if len(inside) else 1)] = False
    before, after = (
        scored([(counts.true, counts.found, counts.predicted)]).iloc[0]
        for counts in (count_lesions(truth, mask, VOXEL) for mask in (prediction, worse))
    )
    keys = [key for key in before.index if key.startswith("lesion_recall")]
    if damage == "false positive":
        keys += ["lesion_precision", "lesion_f1"]
    assert all(after[key] <= before[key] for key in keys if np.isfinite(before[key]))
    assert [np.isfinite(after[key]) for key in keys] == [np.isfinite(before[key]) for key in keys]


def test_a_case_counts_the_lesions_of_the_labels_named():
    """Also of a label that neither map has, and of a single slice."""
    truth = np.zeros((1, 8, 8), dtype=np.uint8)
    truth[0, 1, 1] = truth[0, 5, 5] = 1
    labels = {"a": 1, "b": 2, "c": 3}
    scores = case_scores(
        truth, truth, (999, 10, 10), labels=labels, tolerances=dict.fromkeys(labels, 1.0), lesions=["a", "b"]
    )
    assert (scores["a"]["lesions_true_2"], scores["a"]["lesions_found_2"], scores["a"]["lesions_predicted"]) == (
        2,
        2,
        2,
    )
    assert scores["b"]["lesions_predicted"] == sum(scores["b"][f"lesions_true_{band}"] for band in BANDS) == 0
    assert "lesions_predicted" not in scores["c"]


def test_bands_have_names():
    titles = [lesion_title(f"lesion_recall_{band}", False) for band in BANDS]
    assert titles == [
        "recall, below 0.1 ml",
        "recall, 0.1 to 1 ml",
        "recall, 1 to 10 ml",
        "recall, from 10 ml",
    ]
    assert lesion_title("lesion_recall_2", True) == "recall, 100 to 1000 pixels"


@pytest.mark.slow
def test_the_report_has_them(results, tmp_path, capsys):
    """Counts in cases.csv, comparisons in summary.json and the tables, all from the same pairs."""
    command = ["compare", "-d", "4", "-tr", "nnUNetTrainer", "SASANTrainer", "-np", "1", "-o", str(tmp_path)]
    assert main([*command, "--lesions", "Anterior"]) == 0
    assert "F1 of Anterior lesions" in capsys.readouterr().out
    cases = pd.read_csv(tmp_path / "cases.csv")
    content = json.loads((tmp_path / "summary.json").read_text())
    found = {row["metric"]: row for row in content["lesions"]}
    own = cases[(cases["entrant"] == "SASANTrainer") & (cases["label"] == "Anterior")]
    assert cases[cases["label"] == "Posterior"]["lesions_predicted"].isna().all()
    for metric in ("lesion_f1", "lesion_recall", "lesion_precision"):
        assert found[metric]["mean"] == pytest.approx(own[metric].mean())
        assert found[metric]["pairs"] == own[metric].count() == 12
        assert found[metric]["interval_low"] <= found[metric]["difference"] <= found[metric]["interval_high"]
    totals = next(row for row in content["lesion_totals"] if row["entrant"] == "SASANTrainer")
    assert totals["predicted"] == own["lesions_predicted"].sum()
    assert totals["true"] == sum(own[f"lesions_true_{band}"].sum() for band in BANDS) >= 12
    named = set(re.findall(r"`(\w+)`", (Path(__file__).parents[2] / "docs" / "compare.md").read_text()))
    columns = {name for name in cases.columns if not name.endswith(("_2", "_3"))}  # "..._1 to ..._4"
    assert columns | set(content["lesions"][0]) | set(totals) <= named
    page = (tmp_path / "report.html").read_text()
    assert "Detection of lesions" in page
    assert "Numbers of lesions" in page
    # The verdict does not change, and scores that were kept without lesions are measured again.
    assert main(command) == 0
    plain = json.loads((tmp_path / "summary.json").read_text())
    assert plain["verdicts"] == content["verdicts"]
    assert plain["lesions"] == plain["lesion_totals"] == []
    assert main([*command, "--lesions", "Tail"]) == 2
    assert "--lesions Tail: no such label; known: Anterior, Posterior" in capsys.readouterr().err
