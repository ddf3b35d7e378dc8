"""Setting 2 in the trainer: the plans name classes whose slices train nothing."""

import copy

import numpy as np
import pytest
import torch

from nnunet_ext.fewshot.left_out import LEFT_OUT


@pytest.fixture
def plans(widths):
    return copy.deepcopy(widths) | {LEFT_OUT: ["Posterior"]}


@pytest.mark.parametrize("configuration", ["3d_fullres_tiny", "2d_tiny"])
def test_no_episode_of_a_training_shows_a_class_that_is_left_out(make_trainer, plans, configuration, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer = make_trainer("FAFNetFewShotTrainer", configuration, plans)
    training, _ = trainer.get_dataloaders()
    shown = {
        case: (np.asarray(training.data_loader.dataset.load_case(case)[1])[0] == 2).any((1, 2))
        for case in training.data_loader.cases
    }
    assert all(slices.any() for slices in shown.values())
    assert all(np.array_equal(training.data_loader.left_out[case], slices) for case, slices in shown.items())
    assert np.isfinite(trainer.train_step(next(training))["loss"])
    (log,) = (file for file in [trainer.log_file] if file)
    number, total = sum(int(slices.sum()) for slices in shown.values()), sum(map(len, shown.values()))
    with open(log) as file:
        assert f"Left out of training: {number} of {total} slices, which show Posterior" in file.read()


def test_the_checkpoint_holds_the_classes_and_does_not_resume_with_others(make_trainer, plans, widths, tmp_path):
    file = tmp_path / "checkpoint.pth"
    make_trainer("FAFNetFewShotTrainer", "2d_tiny", plans).save_checkpoint(str(file))
    state = torch.load(file, weights_only=True)
    assert state["nnunet_ext"][LEFT_OUT] == ["Posterior"]
    make_trainer("FAFNetFewShotTrainer", "2d_tiny", plans).load_checkpoint(str(file))
    with pytest.raises(ValueError, match=r"was trained with `left_out_classes`=\['Posterior'\], the plans have \[\]"):
        make_trainer("FAFNetFewShotTrainer", "2d_tiny", widths).load_checkpoint(str(file))


def test_an_unknown_class_is_refused_at_the_start(make_trainer, plans):
    plans[LEFT_OUT] = ["liver"]
    with pytest.raises(ValueError, match="unknown class 'liver'; known: Anterior, Posterior"):
        make_trainer("FAFNetFewShotTrainer", "2d_tiny", plans)
