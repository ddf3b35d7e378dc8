"""Training on faulty volumes, and losses that are not finite; in this process, with real loaders."""

import copy
import json
import math
import shutil

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_ext.training.divergence import MAX_SCALING, MAX_SKIPPED, StepGuard, not_finite, unknown_labels


@pytest.fixture
def cases(nnunet):
    return sorted(file.name.removesuffix(".nii.gz") for file in (nnunet.raw / "labelsTr").iterdir())


@pytest.fixture
def change_case(nnunet_environment, tmp_path, monkeypatch):
    """Changes a preprocessed case in a copy of the data, and returns the training cases."""
    copy = tmp_path / "preprocessed" / nnunet_environment.dataset
    shutil.copytree(nnunet_environment.preprocessed, copy)
    monkeypatch.setenv("nnUNet_preprocessed", str(copy.parent))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def change(edits, train, val):
        folder = copy / "nnUNetPlans_3d_fullres"
        for case, edit in edits.items():
            data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [case]).load_case(case)
            data, seg = edit(data[:].copy(), seg[:].copy())
            for file in folder.glob(f"{case}*"):
                file.unlink()
            found = {label: np.argwhere(seg == label)[:100] for label in properties["class_locations"]}
            shapes = {"chunks": data.shape, "blocks": data.shape, "chunks_seg": seg.shape, "blocks_seg": seg.shape}
            changed = properties | {"class_locations": found}
            nnUNetDatasetBlosc2.save_case(data, seg, changed, str(folder / case), **shapes)
        (copy / "splits_final.json").write_text(json.dumps([{"train": train, "val": val}] * 5))

    return change


def run_steps(trainer, until, at_most=30):
    """Training and validation steps on batches of nnU-Net's loaders, until all of some cases have occurred."""
    loaders = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    losses, seen = [], set()
    for number, step in enumerate((trainer.train_step, trainer.validation_step)):
        if number:
            trainer.on_validation_epoch_start()
        for _ in range(at_most):
            batch = next(loaders[number])
            seen |= {(number, key) for key in batch["keys"]}
            with torch.set_grad_enabled(not number):
                losses.append(float(step(batch)["loss"]))
            if seen >= {(number, case) for case in until[number]}:
                break
    assert seen >= {(number, case) for number in (0, 1) for case in until[number]}
    return losses


def with_nan(data, seg):
    """A volume with one NaN after nnU-Net's normalisation."""
    return np.full_like(data, np.nan), seg


@pytest.mark.parametrize("trainer", ["SASANTrainer", "FAFNetTrainer"])
def test_nan_in_a_training_volume_ends_the_training_with_its_name(make_trainer, change_case, cases, trainer):
    change_case({cases[0]: with_nan}, train=cases[:2], val=cases[2:4])
    trainer = make_trainer(trainer)
    with pytest.raises(ValueError, match=f"NaN or infinite voxels in the preprocessed images of {cases[0]} "):
        run_steps(trainer, (cases[:1], []))
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())


def test_nan_in_a_validation_volume_ends_the_training_too(make_trainer, change_case, cases):
    change_case({cases[0]: with_nan}, train=cases[2:4], val=cases[:2])
    with pytest.raises(ValueError, match=f"NaN or infinite voxels in the preprocessed images of {cases[0]} "):
        run_steps(make_trainer(), ([], cases[:1]))


def test_nan_in_an_image_without_supervoxels_ends_the_training_with_its_name(make_trainer, change_case, cases):
    change_case({cases[0]: with_nan}, train=cases[:2], val=cases[2:4])
    with pytest.raises(ValueError, match=rf"the preprocessed case {cases[0]}: `image` must be finite; \d+ values"):
        run_steps(make_trainer("FAFNetFewShotTrainer"), ([], []))


@pytest.mark.parametrize("trainer", ["SASANTrainer", "FAFNetTrainer", "StockTrainer"])
def test_a_label_without_an_output_ends_the_training_with_its_case(make_trainer, change_case, cases, trainer):
    """The loss alone would end in an index error, on CUDA in a device-side assertion."""
    # Everywhere, so that every patch of the case has it.
    change_case({cases[0]: lambda data, seg: (data, np.full_like(seg, 3))}, train=cases[:2], val=cases[2:4])
    trainer = make_trainer(trainer)
    expected = f"the preprocessed cases {cases[0]} have labels 3 for which the network has no output; dataset.json has "
    with pytest.raises(ValueError, match=f"{expected}0, 1, 2: correct"):
        run_steps(trainer, (cases[:1], []))
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())


def test_the_ignore_label_has_no_output_and_is_trained_on(make_trainer, nnunet):
    labels = nnunet.dataset_json["labels"] | {"ignore": 3}
    trainer = make_trainer(dataset=nnunet.dataset_json | {"labels": labels})
    target = torch.full((2, 1, 4, 4, 4), 3, dtype=torch.int16)
    batch = {"data": torch.zeros(2, 1, 4, 4, 4), "target": [target], "keys": ["a", "b"]}
    trainer.check_batch(batch)
    target[1, 0, 0, 0, 0] = 4
    with pytest.raises(ValueError, match=r"cases b have labels 4 .* dataset\.json has 0, 1, 2, 3: correct"):
        trainer.check_batch(batch)


def test_labels_beyond_the_highest_are_found():
    target = torch.zeros(3, 1, 2, 2, dtype=torch.int16)
    target[1, 0, 0, 0], target[2, 0, 1, 1] = 4, -1
    assert unknown_labels({"target": [target, target[..., :1]]}, 3) == ([1, 2], [-1, 4])
    assert unknown_labels({"target": target[:2]}, 4) == ([], [])
    assert unknown_labels({"support_masks": target}, 0) == ([], [])


def tiny(data, seg):
    """Smaller than the patch of 16 x 24 x 16 in every axis."""
    return data[:, 10:15, 10:15, 10:15], seg[:, 10:15, 10:15, 10:15]


def constant(data, seg):
    """A constant volume after nnU-Net's normalisation."""
    return np.zeros_like(data), seg


def empty(data, seg):
    return np.zeros_like(data), np.zeros_like(seg)


@pytest.mark.parametrize("trainer", ["SASANTrainer", "EMNetTrainer", "SALSTMTrainer", "FAFNetTrainer", "StockTrainer"])
def test_small_constant_and_empty_volumes_are_trained_on(make_trainer, change_case, cases, trainer):
    change_case(dict(zip(cases, (tiny, constant, empty), strict=False)), train=cases[:3], val=cases[:3])
    trainer = make_trainer(trainer)
    assert np.isfinite(run_steps(trainer, (cases[:3], cases[:3]))).all()
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())


@pytest.mark.slow
@pytest.mark.long
def test_a_training_that_diverges_ends_and_its_weights_stay_numbers(make_trainer, change_case, cases, capsys):
    change_case({}, train=cases[:2], val=cases[2:4])
    trainer = make_trainer()
    trainer.num_iterations_per_epoch = 50
    trainer.initial_lr = 1e30
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    with pytest.raises(RuntimeError, match=f"not finite in {MAX_SKIPPED} steps in a row in epoch 0.*has diverged"):
        trainer.run_training()
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())
    assert f"step skipped ({MAX_SKIPPED} in a row)" in capsys.readouterr().out


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_without_finite_gradients_changes_nothing_and_the_next_goes_on(optimizer):
    torch.manual_seed(0)
    inputs = torch.randn(6, 4, 3)
    weights, states, lines = [], [], []
    for disturbed in (False, True):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        extra = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        steps = optimizer(network.parameters(), 0.1, **extra)
        StepGuard(steps, lines.append, lambda: 3)
        for number, x in enumerate(inputs):
            if disturbed:
                for _ in range(MAX_SKIPPED - 1):
                    steps.zero_grad(set_to_none=True)
                    (network(x).sum() * (math.nan if number % 2 else math.inf)).backward()
                    steps.step()
            steps.zero_grad(set_to_none=True)
            network(x).square().mean().backward()
            steps.step()
        weights.append(network.state_dict())
        states.append(steps.state_dict()["state"])
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
    assert str(states[0]) == str(states[1])
    assert len(lines) == len(inputs) * (MAX_SKIPPED - 1)
    assert lines[0] == "Loss or gradients that are not finite in epoch 3: step skipped (1 in a row)"


def scaled_epochs(guard, scaler, network, optimizer, losses, iterations):
    """Epochs of a training under a GradScaler, as nnU-Net's `train_step` runs them."""
    for epoch in range(-(-len(losses) // iterations)):
        part = losses[epoch * iterations : (epoch + 1) * iterations]
        guard.begin_epoch()
        for factor in part:
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(network(torch.ones(2, 3)).sum() * factor).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        guard.end_epoch(len(part))


@pytest.mark.parametrize(("iterations", "epochs"), [(250, 1), (4, 5), (1, MAX_SCALING)])
def test_a_training_that_diverges_under_a_scaler_ends_with_the_epoch(iterations, epochs):
    """A scaler skips all steps silently."""
    network, lines = torch.nn.Linear(3, 2), []
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    guard = StepGuard(optimizer, lines.append, lambda: 3, scaled=True)
    before = copy.deepcopy(network.state_dict())
    losses = [math.nan] * (iterations * (epochs - 1))
    scaled_epochs(guard, scaler, network, optimizer, losses, iterations)
    with pytest.raises(RuntimeError, match=r"no optimiser step was taken in epoch 3: .*has diverged"):
        scaled_epochs(guard, scaler, network, optimizer, [math.nan] * iterations, iterations)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert len(lines) == epochs


def test_a_scaler_that_finds_its_scale_is_let_alone():
    """Its first epochs of few steps may have none; one step is enough."""
    network, lines = torch.nn.Linear(3, 2), []
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    guard = StepGuard(optimizer, lines.append, lambda: 0, scaled=True)
    losses = [*[math.inf] * (MAX_SCALING - 1), 1.0, *[math.inf] * (MAX_SCALING - 1), 1.0]
    scaled_epochs(guard, torch.amp.GradScaler("cpu"), network, optimizer, losses, 1)
    assert len(lines) == 2 * (MAX_SCALING - 1)


def test_an_epoch_without_a_step_ends_the_training_without_a_scaler_too():
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    guard = StepGuard(optimizer, print, lambda: 7)
    guard.begin_epoch()
    for _ in range(2):
        network(torch.full((2, 3), math.nan)).sum().backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"no optimiser step was taken in epoch 7: in all 2 iterations"):
        guard.end_epoch(2)


def test_trainers_of_every_kind_watch_their_steps(make_trainer, change_case, cases):
    """Here with a scaler on the CPU, as nnU-Net has one on CUDA."""
    change_case({}, train=cases[:2], val=cases[2:4])
    trainer = make_trainer("StockTrainer")
    trainer.grad_scaler = torch.amp.GradScaler("cpu")
    trainer.num_iterations_per_epoch = MAX_SCALING
    loss = trainer.loss
    trainer.loss = lambda *arguments: loss(*arguments) * math.nan
    with pytest.raises(RuntimeError, match=r"no optimiser step was taken in epoch 0: .*has diverged"):
        trainer.run_training()
    assert all(value.isfinite().all() for value in trainer.network.state_dict().values())


def test_samples_that_are_not_finite_are_found():
    data = torch.zeros(4, 1, 2, 2)
    data[1, 0, 0, 0], data[3, 0, 1, 1] = math.inf, math.nan
    assert not_finite({"data": data, "target": torch.zeros(4), "keys": ["a"]}) == [1, 3]
    assert not_finite({"query_images": data[:1], "support_images": data[:2], "support_masks": data}) == [1]
    assert not_finite({"data": torch.full((2, 1, 4), 3e38)}) == []  # their sum is infinite
