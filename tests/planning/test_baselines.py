"""Plans for networks of libraries: every patch is one that the network takes."""

import pytest

from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.plans import planner_for
from tests.helpers.baselines import ON_A_LIBRARYS_BACKBONE, SMALL

SHAPE, SPACING = [20, 50, 44], [1.0, 1.0, 1.0]
MULTIPLES = {"MONAIVNetTrainer": 16, "MONAISegResNetTrainer": 8, "UNETRTrainer": 16, "SwinUNETRTrainer": 32} | {
    name: 16 for name in SMALL if name.startswith("MedNeXt")
}
QUICK = ("MONAISegResNetTrainer", "3d_fullres")


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        QUICK,
        *(
            pytest.param(name, configuration, marks=[pytest.mark.slow, pytest.mark.long])
            for name in (*SMALL, *ON_A_LIBRARYS_BACKBONE)
            for configuration in ("2d", "3d_fullres")
            if (name, configuration) != QUICK
        ),
    ],
)
def test_a_patch_is_found(dataset, name, configuration):
    dataset.describe(SHAPE, SPACING)
    trainer = find_trainer(name)
    planner = planner_for(trainer)(321, 8, trainer=trainer, configurations=[configuration])
    planned = planner.plan_experiment()["configurations"][configuration]
    expected = SHAPE if configuration == "3d_fullres" else SHAPE[1:]
    assert all(size >= needed for size, needed in zip(planned["patch_size"], expected, strict=True))
    assert all(size % MULTIPLES.get(name, 1) == 0 for size in planned["patch_size"])
    assert planned["batch_size"] >= 2
