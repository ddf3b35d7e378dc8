"""Damage never helps: false positives, removed predictions and permuted labels, on random masks."""

from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ext.compare.analysis import analyse
from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.metrics import case_scores
from nnunet_ext.compare.settings import Settings
from nnunet_ext.compare.study import Case, Method, Study

LABELS = {"a": 1, "b": 2}
CASES, SHAPE = 20, (6, 10, 10)


def truths(generator):
    """Two boxes in each case; a third of the cases lacks the second."""
    maps = []
    for case in range(CASES):
        mask = np.zeros(SHAPE, dtype=np.uint8)
        z, y, x = generator.integers(0, 3, 3)
        mask[z : z + 3, y : y + 4, x : x + 3] = 1
        if case % 3:
            mask[z : z + 3, y : y + 4, x + 4 : x + 7] = 2
        maps.append(mask)
    return maps


def imperfect(truth, generator, share):
    """A prediction that misses a share of the foreground's voxels."""
    return np.where(generator.random(truth.shape) < share, 0, truth).astype(np.uint8)


def false_positives(truth, prediction, generator):
    """A label in the background."""
    place = (truth == 0) & (prediction == 0) & (generator.random(truth.shape) < 0.2)
    return np.where(place, 2, prediction)


def removed(truth, prediction, generator):
    """Removes the prediction of an existing label."""
    return np.where((prediction == 1) & (truth > 0), 0, prediction)


def permuted(truth, prediction, generator):
    """Exchanges correct labels."""
    return np.where((prediction == truth) & (truth > 0), 3 - prediction, prediction)


DAMAGES = {"false positives": false_positives, "removed": removed, "permuted": permuted}


def analysed(maps, **predictions):
    cases = {f"c{i:02}": Case(f"c{i:02}", str(i % 5), Path(), Path(), None) for i in range(CASES)}
    labels = LabelSet(LABELS, None, ".nii.gz", "SimpleITKIO")
    study = Study("made", [Method(name, cases) for name in predictions], "base", labels, list("01234"))
    rows = []
    for name, masks in predictions.items():
        for case, truth, mask in zip(cases.values(), maps, masks, strict=True):
            scores = case_scores(truth, mask, (2, 1, 1), labels=LABELS, tolerances=dict.fromkeys(LABELS, 1.0))
            known = {"entrant": name, "repeat": 1, "case": case.name, "fold": case.fold}
            rows += [known | {"label": label} | scores[label] for label in LABELS]
    return analyse(study, pd.DataFrame(rows), Settings())


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    damage=st.sampled_from(sorted(DAMAGES)),
    shares=st.tuples(st.floats(0.05, 0.6), st.floats(0.05, 0.6)),
    hit=st.floats(0.3, 1),
)
def test_damage_never_improves_a_verdict(seed, damage, shares, hit):
    """The damaged method is no better than before: in no case, not in the mean, in no verdict for it."""
    generator = np.random.default_rng(seed)
    maps = truths(generator)
    base, plain = ([imperfect(truth, generator, share) for truth in maps] for share in shares)
    chosen = generator.random(CASES) < hit
    damaged = [
        DAMAGES[damage](truth, mask, generator) if use else mask
        for truth, mask, use in zip(maps, plain, chosen, strict=True)
    ]
    result = analysed(maps, base=base, plain=plain, damaged=damaged)
    before, after = result.primary("plain"), result.primary("damaged")
    assert (result.case_differences["damaged"] <= result.case_differences["plain"] + 1e-12).all()
    assert after.estimate.mean <= before.estimate.mean
    assert before.estimate.cases == after.estimate.cases == CASES
    assert after.verdict != "better" or before.verdict == "better"
    assert before.verdict != "worse" or after.verdict not in ("better", "equivalent")
    for metric in ("hd95", "assd"):
        assert result.comparisons["damaged", metric, ""].dropped == 0


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), damage=st.sampled_from(sorted(DAMAGES)), hit=st.floats(0.05, 1))
def test_a_damaged_copy_of_the_baseline_is_never_better(seed, damage, hit):
    generator = np.random.default_rng(seed)
    maps = truths(generator)
    base = [imperfect(truth, generator, 0.2) for truth in maps]
    copies = [
        DAMAGES[damage](truth, mask, generator) if generator.random() < hit else mask
        for truth, mask in zip(maps, base, strict=True)
    ]
    found = analysed(maps, base=base, copy=copies).primary("copy")
    assert found.verdict in ("worse", "inconclusive", "equivalent")
    assert found.estimate.mean <= 0


def test_missing_half_of_the_objects_worsens_every_metric():
    """Forty lesions, half of them missed: HD95 and ASSD are the image's diagonal there, not left out."""
    generator = np.random.default_rng(0)
    maps = truths(generator)
    base = [imperfect(truth, generator, 0.2) for truth in maps]
    missing = [np.zeros_like(mask) if i % 2 else mask for i, mask in enumerate(base)]
    result = analysed(maps, base=base, missing=missing)
    assert result.primary("missing").verdict == "worse"
    for metric in ("hd95", "assd"):
        found = result.comparisons["missing", metric, ""]
        assert found.own > found.baseline + 3
        assert found.estimate.cases == CASES
