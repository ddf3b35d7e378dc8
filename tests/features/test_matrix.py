"""Every trainer with every feature of nnU-Net, through its commands; docs/features.md is made from the outcomes."""

import pytest

from benchmarks.page.feature_matrix import BASELINES, FEATURES, MAIN_FEATURES, REFUSED, TRAINERS
from tests.features.cells import CELLS

EVERY = [(t, f, 1) for t in TRAINERS for f in FEATURES] + [(t, f, 32) for t in BASELINES for f in MAIN_FEATURES]
"""Trainer, feature and the multiple of the patch: MONAI's classes halve every axis up to five times."""
IN_CONTINUOUS_INTEGRATION = {("SASANTrainer", "cascade"), ("FAFNetTrainer", "regions_ignore")}


def marks(trainer, feature):
    names = ["slow"] if (trainer, feature) in IN_CONTINUOUS_INTEGRATION else ["slow", "long"]
    return [*(getattr(pytest.mark, name) for name in names), pytest.mark.cell(trainer, feature)]


@pytest.mark.parametrize(
    ("trainer", "feature", "multiple"),
    [
        pytest.param(trainer, feature, multiple, marks=marks(trainer, feature), id=f"{trainer}-{feature}")
        for trainer, feature, multiple in EVERY
        if (trainer, feature) not in REFUSED
    ],
)
def test_a_trainer_does_what_nnunet_does(lab_for, trainer, feature, multiple):
    CELLS[feature](lab_for(multiple), trainer)
