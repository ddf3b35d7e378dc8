"""Promises to users of version 0.1.0: import paths, plans and checkpoints of that version still work.

`tests/data/version_0_1_0` holds models that version 0.1.0 trained for two iterations: each folder is nnU-Net's, with
the plans that its `nnunet_ext plan` (SASAN, EM-Net) or nnU-Net wrote. `logits.npy` is the network's output in that
version for the input of `test_models_predict_as_before`.
"""

import importlib
import shutil

import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_ext.nnunet.checkpoints import read_checkpoint
from nnunet_ext.nnunet.json_files import read_json
from nnunet_ext.nnunet.trained_model import load_predictor
from tests.helpers.paths import TESTS

MODELS = TESTS / "data" / "version_0_1_0"
TRAINERS = ("SASANTrainer", "EMNetTrainer", "LSTMSATrainer", "FAFNetTrainer")
PUBLIC = {
    "nnunet_ext.networks": (
        *("SASAN", "EMNet", "SALSTM", "LSTMSA", "FAFNet", "MTUNet", "NETWORKS", "NetworkInfo", "network_info"),
    ),
    "nnunet_ext.networks.sasan": ("SASAN",),
    "nnunet_ext.networks.em_net": ("EMNet", "VARIANTS"),
    "nnunet_ext.networks.lstm_sa": ("SALSTM", "LSTMSA", "MT_UNET"),
    "nnunet_ext.networks.faf_net": ("FAFNet",),
    "nnunet_ext.networks.mt_unet": ("MTUNet",),
    "nnunet_ext.ops": ("selective_scan", "selective_scan_reference", "causal_conv1d", "describe_backend"),
    "nnunet_ext.losses": ("SelfUpdatingLoss", "output_weights"),
    "nnunet_ext.weights": ("from_authors", "read_state_dict", "write_pretrained"),
    "nnunet_ext.fewshot": ("SupervoxelParameters", "cached_supervoxels", "default_min_size", "supervoxels"),
    "nnunet_ext.training": (
        *("Budget", "EMNetBaseTrainer", "FAFNetLabelTrainer", "FAFNetSupervoxelTrainer", "PluginTrainer"),
        *("SelfUpdatingLossTrainer", "SliceNetworkTrainer", "network_from_plan"),
    ),
    "nnunet_ext.plans": ("PLANNERS", "planner_for", "SASANPlanner", "EMNetPlanner", "SALSTMPlanner", "LSTMSAPlanner"),
    "nnunet_ext.planning.planner": ("TracedPlanner",),
    "nnunet_ext.planning.preset": ("Preset",),
}


@pytest.mark.parametrize("module", PUBLIC)
def test_import_paths(module):
    found = importlib.import_module(module)
    assert [name for name in PUBLIC[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("name", TRAINERS)
def test_models_predict_as_before(name, assert_close):
    predictor = load_predictor(MODELS / name, "cpu")
    network = predictor.network.eval()
    network.load_state_dict(predictor.list_of_parameters[0])
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 16, 24, 16)).astype(np.float32))
    with torch.no_grad():
        assert_close(network(images), torch.from_numpy(np.load(MODELS / name / "logits.npy")), 1e-4)


@pytest.mark.parametrize("name", TRAINERS)
def test_trainings_resume(name, nnunet_environment, tmp_path, monkeypatch):
    """Network, optimiser, logger and extra state load into a training on the same plans, as `nnUNetv2_train --c`."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    checkpoint = MODELS / name / "fold_all" / "checkpoint_final.pth"
    plans = read_json(MODELS / name / "plans.json") | {"continue_training": True}
    trainer_class = recursive_find_trainer_class_by_name(name)
    trainer = trainer_class(plans, "tiny", "all", read_json(MODELS / name / "dataset.json"), torch.device("cpu"))
    trainer.initialize()
    trainer.load_checkpoint(str(checkpoint))
    assert trainer.current_epoch == 1
    saved = read_checkpoint(checkpoint)["optimizer_state"]["state"]
    loaded = trainer.optimizer.state_dict()["state"]
    assert len(loaded) == len(saved) > 0


def test_plans_of_a_network_work_under_the_stock_trainer(nnunet_environment, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    shutil.copy(MODELS / "SASANTrainer" / "plans.json", tmp_path / "plans.json")
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainer")(
        read_json(tmp_path / "plans.json") | {"continue_training": False},
        "tiny",
        "all",
        read_json(MODELS / "SASANTrainer" / "dataset.json"),
        torch.device("cpu"),
    )
    trainer.initialize()
    assert type(trainer.network).__name__ == "SASAN"
