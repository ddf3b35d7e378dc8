"""Checkpoints that cannot be written, are damaged, or belong to another model."""

import copy
import json
import os
import pickle
import re

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_ext.cli.main import main
from nnunet_ext.nnunet.checkpoints import read_checkpoint
from nnunet_ext.nnunet.trained_model import load_predictor
from nnunet_ext.utils.safe_load import NotPlainError
from nnunet_ext.weights import write_pretrained
from tests.helpers.unpickling import Calls


def plans_with(nnunet, configuration="3d_fullres_tiny", **change):
    plans = nnunet.plans
    plans["configurations"][configuration] |= change
    return plans


def labels_with(nnunet, *names):
    return nnunet.dataset_json | {"labels": {name: value for value, name in enumerate(("background", *names))}}


@pytest.mark.parametrize("room", [0.5, 1.5], ids=["while nnU-Net writes", "while ours is added"])
def test_a_full_disk_costs_no_checkpoint(make_trainer, small_disk, room):
    trainer, disk = make_trainer(), small_disk(64)
    file = disk / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before, size = file.read_bytes(), file.stat().st_size
    with (disk / "filler").open("wb") as filler:
        filler.write(bytes(64 * 2**20 - round((1 + room) * size) - 2**16))
    trainer.current_epoch = 7
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        trainer.save_checkpoint(str(file))
    assert sorted(os.listdir(disk)) == ["checkpoint_latest.pth", "filler"]
    assert file.read_bytes() == before
    (disk / "filler").unlink()
    trainer.save_checkpoint(str(file))
    assert read_checkpoint(file)["current_epoch"] == 8
    assert os.listdir(disk) == ["checkpoint_latest.pth"]


def damage(kind, whole, network):
    """Content of a file in a checkpoint's place, and the expected error message."""
    if kind == "cut off":
        return whole[: len(whole) // 2], "cannot be read: it is cut off, or was not written by torch"
    if kind == "cut off early":
        return whole[:2000], "cannot be read: it is cut off, or was not written by torch"
    if kind == "last byte gone":
        return whole[:-1], "cannot be read: it is cut off, or was not written by torch"
    if kind == "empty":
        return b"", "is empty"
    if kind == "text":
        text = b"Dear colleague,\nthe weights are on the other disk.\n"
        return text, "cannot be read: it is cut off, or was not written by torch"
    if kind == "pickle":
        return pickle.dumps([1, 2, 3]), "cannot be read: it is cut off, or was not written by torch"
    return network, {
        "another project": "is not a checkpoint of nnU-Net: it has no network_weights, .*; it holds epoch, state_dict",
        "a tensor": "is not a checkpoint of nnU-Net: it has no network_weights, .*; it holds Tensor",
        "weights alone": "is not a checkpoint of nnU-Net: it has no optimizer_state, .*; it holds network_weights",
    }[kind]


DAMAGES = ["cut off", "cut off early", "last byte gone", "empty", "text", "pickle"]
FOREIGN = ["another project", "a tensor", "weights alone"]


def write_damaged(kind, file, network):
    content, message = damage(kind, file.read_bytes(), network)
    if kind == "weights alone":
        write_pretrained(network, file)
    elif kind in FOREIGN:
        torch.save({"epoch": 3, "state_dict": network.state_dict()} if "project" in kind else torch.zeros(3), file)
    else:
        file.write_bytes(content)
    return f"{re.escape(str(file))} {message}"


@pytest.fixture
def trained(make_trainer, tmp_path):
    """A trainer and its checkpoint."""
    trainer = make_trainer()
    trainer.save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    return trainer, tmp_path / "checkpoint_final.pth"


def test_a_damaged_or_foreign_checkpoint_is_named_and_nothing_of_it_is_taken(trained):
    trainer, file = trained
    whole = file.read_bytes()
    before = copy.deepcopy(trainer.network.state_dict())
    for kind in DAMAGES + FOREIGN:
        file.write_bytes(whole)
        with pytest.raises(ValueError, match=write_damaged(kind, file, trainer.network)):
            trainer.load_checkpoint(str(file))
        after = trainer.network.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
    file.unlink()
    with pytest.raises(FileNotFoundError, match=str(file)):
        trainer.load_checkpoint(str(file))


def test_a_checkpoint_holds_plain_values_alone(trained):
    trainer, file = trained
    trainer.logger.log("mean_fg_dice", np.float64(0.1), 0)
    trainer._best_ema = np.float32(0.25)
    trainer.save_checkpoint(str(file))
    content = torch.load(file, weights_only=True)
    assert content["logging"]["mean_fg_dice"] == [0.1]
    assert content["_best_ema"] == 0.25
    assert content["init_args"] == trainer.my_init_kwargs


@pytest.mark.parametrize("reads", ["resuming", "prediction"])
def test_code_in_a_checkpoint_is_not_executed(trained, tmp_path, monkeypatch, reads):
    trainer, file = trained
    content = torch.load(file, weights_only=True)
    torch.save(content | {"surprise": Calls(os.system, f"touch {tmp_path}/executed")}, file)
    model = tmp_path / "model"
    (model / "fold_0").mkdir(parents=True)
    file = file.rename(model / "fold_0" / file.name)
    for name, what in (("plans", trainer.my_init_kwargs["plans"]), ("dataset", trainer.dataset_json)):
        (model / f"{name}.json").write_text(json.dumps(what))
    read = {"resuming": lambda: trainer.load_checkpoint(str(file)), "prediction": lambda: load_predictor(model, "cpu")}
    with pytest.raises(NotPlainError, match=rf"{file.name} holds Python objects .*system.*execute arbitrary code"):
        read[reads]()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["SASANTrainer", "EMNetTrainer"])
def test_a_checkpoint_of_another_patch_size_is_refused_with_both(make_trainer, nnunet, tmp_path, name):
    make_trainer(name).save_checkpoint(str(tmp_path / "c.pth"))
    other = make_trainer(name, plans=plans_with(nnunet, patch_size=[16, 32, 16]))
    expected = r"c\.pth does not fit .*patch size \(16, 24, 16\) in the checkpoint, \(16, 32, 16\) here.*instead of"
    with pytest.raises(ValueError, match=expected):
        other.load_checkpoint(str(tmp_path / "c.pth"))
    assert other.current_epoch == 0


@pytest.mark.parametrize("name", ["SASANTrainer", "EMNetTrainer", "SALSTMTrainer", "FAFNetTrainer", "StockTrainer"])
def test_a_checkpoint_of_other_classes_is_refused_with_both(make_trainer, nnunet, name, tmp_path):
    trainer = make_trainer(name)
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    other = make_trainer(name, dataset=labels_with(nnunet, "a", "b", "c"))
    with pytest.raises(ValueError, match=r"c\.pth does not fit .*outputs 3 in the checkpoint, 4 here"):
        other.load_checkpoint(str(tmp_path / "c.pth"))


def test_a_checkpoint_of_other_channels_features_or_another_trainer_is_refused_with_both(trained, make_trainer, nnunet):
    _, file = trained
    channels = make_trainer(dataset=nnunet.dataset_json | {"channel_names": {"0": "T1", "1": "T2"}})
    with pytest.raises(ValueError, match="input channels 1 in the checkpoint, 2 here"):
        channels.load_checkpoint(str(file))
    plans = nnunet.plans
    arguments = plans["configurations"]["3d_fullres_tiny"]["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [16] * arguments["n_stages"]
    with pytest.raises(ValueError, match=r"features \(8, 8.*\) in the checkpoint, \(16, 16.*\) here"):
        make_trainer(plans=plans).load_checkpoint(str(file))
    with pytest.raises(ValueError, match=r"trainer SASANTrainer in the checkpoint, EMNetTrainer here .* is missing"):
        make_trainer("EMNetTrainer").load_checkpoint(str(file))
    with pytest.raises(ValueError, match="configuration 3d_fullres_tiny in the checkpoint, 2d_tiny here"):
        make_trainer(configuration="2d_tiny").load_checkpoint(str(file))


def nnunets_predictor(folder):
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(folder), [0], "checkpoint_final.pth")
    return predictor


def test_prediction_with_another_plan_or_other_labels_says_both(make_model, nnunet):
    """Refused by nnU-Net's predictor, which does not know the file's name, and by ours, which names the fold's file."""
    folder = make_model("SASANTrainer", plans=nnunet.plans)
    plans = (folder / "plans.json").read_text()
    (folder / "plans.json").write_text(json.dumps(plans_with(nnunet, patch_size=[16, 32, 16])))
    shapes = r"encoder\.fine\.0\.mask is \(1, 8, 16, 24, 16\) instead of \(1, 8, 16, 32, 16\)"
    with pytest.raises(ValueError, match=rf"SASAN was built for patch size \(16, 32, 16\), but in .*{shapes}"):
        nnunets_predictor(folder)
    both = r"patch size \(16, 24, 16\) in the checkpoint, \(16, 32, 16\) here"
    with pytest.raises(ValueError, match=rf"fold_0/checkpoint_final\.pth does not fit .*{both}"):
        load_predictor(folder, "cpu")

    (folder / "plans.json").write_text(plans)
    (folder / "dataset.json").write_text(json.dumps(labels_with(nnunet, "a", "b", "c")))
    with pytest.raises(ValueError, match=r"seg_layers\.0\.weight is \(3, 8, 1, 1, 1\) instead of \(4, 8, 1, 1, 1\)"):
        nnunets_predictor(folder)
    with pytest.raises(ValueError, match=r"fold_0/checkpoint_final\.pth does not fit .*outputs 3 in the checkpoint, 4"):
        load_predictor(folder, "cpu")


def test_a_fold_of_another_plan_than_the_others_is_named(make_model, nnunet, tmp_path):
    folder = make_model("SASANTrainer", folds=(0, 1), plans=nnunet.plans)
    make_model("SASANTrainer", folds=(2,), plans=plans_with(nnunet, patch_size=[16, 32, 16]))
    with pytest.raises(ValueError, match=r"fold_0/checkpoint_final\.pth does not fit .*\(16, 24, 16\).*\(16, 32, 16\)"):
        load_predictor(folder, "cpu")
    with pytest.raises(ValueError, match=r"fold_1/checkpoint_final\.pth does not fit"):
        load_predictor(folder, "cpu", folds=[2, 1])
    assert len(load_predictor(folder, "cpu", folds=[2]).list_of_parameters) == 1


@pytest.mark.parametrize("command", ["fewshot", "predict"])
def test_commands_name_a_damaged_checkpoint(command, make_model, nnunet, tmp_path, monkeypatch, capsys):
    folder = make_model("FAFNetFewShotTrainer")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "results" / nnunet.dataset).mkdir(parents=True)
    model = folder.rename(tmp_path / "results" / nnunet.dataset / "FAFNetFewShotTrainer__nnUNetPlans__3d_fullres_tiny")
    file = model / "fold_0" / "checkpoint_final.pth"
    image, mask = sorted((nnunet.raw / "imagesTr").iterdir())[0], sorted((nnunet.raw / "labelsTr").iterdir())[0]
    options = {
        "fewshot": [*("--model", str(model), "--support", str(image), "--mask", str(mask), "--label", "1")],
        "predict": [*("-d", "4", "-c", "3d_fullres_tiny", "-tr", "FAFNetFewShotTrainer")],
    }[command]
    whole, network = file.read_bytes(), torch.nn.Linear(3, 3)
    for kind in ("cut off", "text", "another project", "weights alone"):
        file.write_bytes(whole)
        message = write_damaged(kind, file, network)
        assert main([command, *options, "-i", str(nnunet.raw / "imagesTs"), "-o", str(tmp_path / "out")]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["cut off", "cut off early", "empty", "text", "a tensor"])
def test_import_weights_names_a_damaged_file(kind, golden, tmp_path, capsys):
    file = tmp_path / "authors.pth"
    torch.save(golden("sasan").state_dict, file)
    write_damaged(kind, file, torch.nn.Linear(3, 3))
    assert main(["import-weights", "sasan", str(file), str(tmp_path / "ours.pth")]) == 2
    error = capsys.readouterr().err
    reason = {"empty": "it is empty", "a tensor": "holds no state dict"}.get(
        kind, "it is truncated or was not written by torch"
    )
    assert error.startswith(f"nnunet_ext import-weights: {file} ")
    assert reason in error
    assert not (tmp_path / "ours.pth").exists()


def test_import_weights_of_another_network_names_the_file(golden, tmp_path, capsys):
    file = tmp_path / "authors.pth"
    torch.save(golden("sasan").state_dict, file)
    assert main(["import-weights", "em_net", str(file), str(tmp_path / "ours.pth")]) == 2
    assert f"nnunet_ext import-weights: {file}: these are not the authors' EM-Net weights" in capsys.readouterr().err


def test_pretrained_weights_of_another_patch_size_are_refused_by_nnunet(make_trainer, nnunet, tmp_path):
    """Its own function, on a file as import-weights writes it."""
    write_pretrained(make_trainer().network, tmp_path / "pretrained.pth")
    other = make_trainer(plans=plans_with(nnunet, patch_size=[16, 32, 16]))
    with pytest.raises(AssertionError, match=r"key encoder\.fine\.0\.mask is not the same"):
        load_pretrained_weights(other.network, str(tmp_path / "pretrained.pth"))
