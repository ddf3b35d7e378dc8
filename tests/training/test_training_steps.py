"""Every trainer's own training step on batches of its own loaders: reproducible on the CPU, scaled on a GPU."""

import copy

import numpy as np
import pytest
import torch

from nnunet_ext.nnunet.trainers import known_trainers
from tests.helpers.baselines import OTHER_PATCHES

OTHERS = ("MTUNet", "ResNet101", *OTHER_PATCHES)
TRAINERS = [name for name in known_trainers() if not any(other in name for other in OTHERS)]
"""All trainers except those for other patches and the one that downloads weights."""
QUICK = ("SASANTrainer", "SALSTMTrainer")
SLOW = ("LSTMSATrainer", "FAFNetTrainer", "FAFNetFewShotTrainer", "EMNetTrainer")


def marked(name):
    if name in QUICK:
        return name
    return pytest.param(name, marks=[pytest.mark.slow, *([] if name in SLOW else [pytest.mark.long])])


@pytest.fixture
def batches(monkeypatch):
    """Batches of a trainer's own loader, made once and in this process."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def draw(trainer, count):
        np.random.seed(0)  # noqa: NPY002 (nnU-Net's loaders draw from it)
        training, _ = trainer.get_dataloaders()
        return [copy.deepcopy(next(training)) for _ in range(count)]

    return draw


@pytest.mark.parametrize("name", [marked(name) for name in TRAINERS])
def test_the_same_seed_gives_the_same_losses(make_trainer, batches, name):
    """Bit for bit, from the initial weights on."""
    given, curves, weights = None, [], []
    for _ in range(2):
        torch.manual_seed(1)
        trainer = make_trainer(name, "2d_tiny")
        if given is None:
            given = batches(trainer, 3)
        torch.manual_seed(2)  # dropout, and what trainers draw themselves
        trainer.on_train_epoch_start()
        curves.append([float(trainer.train_step(copy.deepcopy(batch))["loss"]) for batch in given])
        weights.append(trainer.network.state_dict())
    assert curves[0] == curves[1]
    assert len(set(curves[0])) == 3
    assert [k for k, value in weights[0].items() if not torch.equal(value, weights[1][k])] == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", TRAINERS)
def test_a_scaled_step_in_float16_on_a_gpu(make_trainer, batches, name):
    trainer = make_trainer(name, "2d_tiny", device="cuda")
    before = copy.deepcopy(trainer.network.state_dict())
    trainer.on_train_epoch_start()
    for batch in batches(trainer, 3):
        assert np.isfinite(trainer.train_step(batch)["loss"])
    assert trainer.grad_scaler.get_scale() > 0
    learnt = {k for k, p in trainer.network.named_parameters() if p.requires_grad and not k.endswith("conv.bias")}
    changed = {k for k, value in trainer.network.state_dict().items() if not torch.equal(value, before[k])}
    assert learnt & changed
    assert all(p.isfinite().all() for p in trainer.network.parameters())
