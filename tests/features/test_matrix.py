"""Every trainer with every feature of nnU-Net, through its commands; docs/features.md is made from the outcomes."""

import pytest

from benchmarks.page.feature_matrix import FEATURES, TRAINERS
from tests.features.cells import CELLS

IN_CONTINUOUS_INTEGRATION = {("SASANTrainer", "cascade"), ("FAFNetTrainer", "regions_ignore")}


def marks(trainer, feature):
    names = ["slow"] if (trainer, feature) in IN_CONTINUOUS_INTEGRATION else ["slow", "long"]
    return [*(getattr(pytest.mark, name) for name in names), pytest.mark.cell(trainer, feature)]


@pytest.mark.parametrize(
    ("trainer", "feature"),
    [
        pytest.param(trainer, feature, marks=marks(trainer, feature), id=f"{trainer}-{feature}")
        for trainer in TRAINERS
        for feature in FEATURES
    ],
)
def test_a_trainer_does_what_nnunet_does(lab, trainer, feature):
    CELLS[feature](lab, trainer)
