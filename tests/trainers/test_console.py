"""Real, tiny nnU-Net runs through the console commands."""

import json
import os
import re

import pytest
import SimpleITK as sitk
import torch

from benchmarks import few_shot

BUDGET = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "2", "NNUNET_EXT_VAL_ITERATIONS": "1"}
TINY_PLAN = ("--gpu-memory", "0.3", "-c", "3d_fullres")
SHORT_STOCK_TRAINER = """
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class ShortStockTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
"""


def train(nnunet, trainer, configuration, *options, **environment):
    return nnunet.run(
        "nnUNetv2_train", "4", configuration, "0", "-tr", trainer, "-device", "cpu", *options, **(BUDGET | environment)
    )


def predict(nnunet, trainer, configuration, target, plans="nnUNetPlans"):
    nnunet.run(
        "nnUNetv2_predict",
        *("-i", str(nnunet.raw / "imagesTs"), "-o", str(target), "-d", "4", "-c", configuration, "-f", "0"),
        *("-tr", trainer, "-p", plans, "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta"),
    )
    (image,) = (nnunet.raw / "imagesTs").iterdir()
    (mask,) = target.glob("*.nii.gz")
    image, mask = sitk.ReadImage(str(image)), sitk.ReadImage(str(mask))
    assert mask.GetSize() == image.GetSize()
    assert mask.GetSpacing() == image.GetSpacing()
    assert set(sitk.GetArrayFromImage(mask).ravel()) <= {0, 1, 2}


@pytest.mark.slow
def test_train_validate_predict_and_continue(nnunet, tmp_path):
    """A tiny network with the plan's patch: a scan is one tile, not 64."""
    plans = nnunet.plans
    configurations = plans["configurations"]
    patch = {"patch_size": configurations["3d_fullres"]["patch_size"]}
    configurations["3d_fullres_one_tile"] = configurations["3d_fullres_tiny"] | patch
    nnunet.write_plans(plans)
    printed = train(nnunet, "SASANTrainer", "3d_fullres_one_tile")
    assert "1 epochs, 2 training and 1 validation iterations" in printed
    assert "SM loss raw_weights: dice 1.0000" in printed
    assert "Peak memory: " in printed
    model = nnunet.model("SASANTrainer", "3d_fullres_one_tile")
    summary = json.loads((model / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    predict(nnunet, "SASANTrainer", "3d_fullres_one_tile", tmp_path)

    # --c resumes from the checkpoint, with the loss weights that it holds.
    file = model / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["nnunet_ext"]["loss"]["raw_weights"] = torch.tensor([1.5, 1.25, 1.125])
    torch.save(checkpoint, file)
    printed = train(nnunet, "SASANTrainer", "3d_fullres_one_tile", "--c", NNUNET_EXT_EPOCHS="2")
    assert "the checkpoint was trained with {'epochs': 1" in printed
    assert "Epoch 1" in printed
    assert "SM loss raw_weights: dice 1.5000, cross_entropy 1.2500, boundary 1.1250" in printed
    state = torch.load(file, weights_only=False)
    assert state["current_epoch"] == 2
    assert state["nnunet_ext"]["loss"]["raw_weights"].tolist() == [1.5, 1.25, 1.125]
    assert len(state["nnunet_ext"]["loss_history"]) == 2


@pytest.mark.slow
def test_em_net_trains_validates_predicts_and_names_its_backend(nnunet, tmp_path):
    """With the plan's patch: a scan is one tile, not 64."""
    printed = train(nnunet, "EMNetTrainer", "3d_fullres")
    assert re.search(r"Selective scan on cpu: (cpu \(C extension|torch \(segments)", printed)
    (log,) = nnunet.model("EMNetTrainer", "3d_fullres").glob("training_log_*.txt")
    assert "Selective scan on cpu: " in log.read_text()
    predict(nnunet, "EMNetTrainer", "3d_fullres", tmp_path)


def test_a_wrong_budget_stops_before_anything_is_written(nnunet):
    done = nnunet.attempt(
        "nnUNetv2_train", "4", "2d_tiny", "0", "-tr", "SASANTrainer", "-device", "cpu", NNUNET_EXT_EPOCHS="few"
    )
    assert done.returncode != 0
    assert "NNUNET_EXT_EPOCHS='few' must be a positive integer" in done.stdout
    assert not nnunet.model("SASANTrainer", "2d_tiny").exists()


def test_unset_folders_are_named(nnunet, monkeypatch):
    monkeypatch.delitem(nnunet.environment, "nnUNet_preprocessed")
    done = nnunet.attempt("nnUNetv2_train", "4", "2d_tiny", "0", "-tr", "SASANTrainer", "-device", "cpu")
    assert done.returncode != 0
    assert "nnUNet_preprocessed is not defined" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "configuration"),
    [
        ("SASANTrainer", "2d_tiny"),
        ("EMNetTrainer", "2d"),
        ("LSTMSATrainer", "3d_fullres"),
        ("FAFNetTrainer", "3d_fullres"),
        ("FAFNetFewShotTrainer", "2d"),
        *(
            pytest.param(trainer, configuration, marks=pytest.mark.long)
            for trainer, configuration in (
                ("SASANTrainerDiceCE", "3d_fullres_tiny"),
                ("StockTrainer", "3d_fullres_tiny"),
                ("EMNetAuthorsTrainer", "3d_fullres"),
                ("EMNetSGDTrainer", "3d_fullres_tiny"),
                ("EMNetATrainer", "3d_fullres_tiny"),
                ("EMNetBTrainer", "3d_fullres_tiny"),
                ("EMNetCTrainer", "2d_tiny"),
                ("EMNetNoMambaTrainer", "3d_fullres_tiny"),
                ("LSTMSATrainer", "2d"),
                ("SALSTMTrainer", "3d_fullres_tiny"),
                ("FAFNetTrainer", "2d"),
                ("UMambaEncTrainer", "3d_fullres_tiny"),
                ("UMambaBotTrainer", "2d_tiny"),
                ("UMambaBotNoMambaTrainer", "3d_fullres_tiny"),
            )
        ),
    ],
)
def test_other_trainers_and_configurations(nnunet, tmp_path, trainer, configuration):
    train(nnunet, trainer, configuration)
    predict(nnunet, trainer, configuration, tmp_path)


@pytest.fixture
def short_stock_trainer(nnunet, tmp_path, monkeypatch):
    """nnU-Net's own trainer for a few iterations: our budget variables do not bind it."""
    (tmp_path / "ShortStockTrainer.py").write_text(SHORT_STOCK_TRAINER)
    folders = (nnunet.environment["nnUNet_extTrainer"], str(tmp_path))
    monkeypatch.setitem(nnunet.environment, "nnUNet_extTrainer", os.pathsep.join(folders))
    return "ShortStockTrainer"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["SASAN", *(pytest.param(name, marks=pytest.mark.long) for name in ("EMNet", "LSTMSA"))]
)
def test_stock_trainer_trains_a_plan_that_names_our_network(nnunet, name_network, name, tmp_path, short_stock_trainer):
    """The third way to use a network: `network_class_name` of a plan, under nnU-Net's own trainer."""
    plans = nnunet.plans
    name_network(name, plans["configurations"]["3d_fullres_tiny"])
    plans["plans_name"] = f"{name}Plans"
    (nnunet.preprocessed / f"{name}Plans.json").write_text(json.dumps(plans))
    train(nnunet, short_stock_trainer, "3d_fullres_tiny", "-p", f"{name}Plans")
    predict(nnunet, short_stock_trainer, "3d_fullres_tiny", tmp_path / "masks", f"{name}Plans")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "plans"),
    [
        pytest.param("SASANTrainer", "nnUNetSASANPlans", marks=pytest.mark.long),
        ("EMNetTrainer", "nnUNetEMNetPlans"),
    ],
)
def test_planned_trained_and_predicted_on_shared_data(nnunet, tmp_path, short_stock_trainer, trainer, plans):
    """By the trainer and by nnU-Net's own, a few iterations of it, on the data of nnU-Net's default plan."""
    printed = nnunet.run("nnunet_ext", "plan", "-d", "4", "-tr", trainer, *TINY_PLAN)
    assert "nothing to preprocess: the data already exist" in printed
    configuration = json.loads((nnunet.preprocessed / f"{plans}.json").read_text())["configurations"]["3d_fullres"]
    assert configuration["data_identifier"] == "nnUNetPlans_3d_fullres"
    for name in (trainer, short_stock_trainer):
        train(nnunet, name, "3d_fullres", "-p", plans)
        predict(nnunet, name, "3d_fullres", tmp_path / name, plans)
    assert not list(nnunet.preprocessed.glob(f"{plans}_*"))


@pytest.mark.slow
def test_a_missing_fingerprint_is_extracted_and_other_data_are_preprocessed_by_the_printed_command(nnunet):
    file = nnunet.preprocessed / "dataset_fingerprint.json"
    before = file.read_text()
    file.unlink()
    options = ("--plans-name", "Coarse", "--overwrite-target-spacing", "2", "2", "2")
    arguments = ("-tr", "StockTrainer", "-c", "3d_fullres", *options)
    printed = nnunet.run("nnunet_ext", "plan", "-d", nnunet.dataset, *arguments)
    assert json.loads(file.read_text()).keys() == json.loads(before).keys()
    (command,) = [line.split() for line in printed.splitlines() if "nnUNetv2_preprocess" in line]
    nnunet.run(*command, "-np", "2")
    again = nnunet.run("nnunet_ext", "plan", "-d", "4", *arguments)
    assert "nothing to preprocess" in again
    train(nnunet, "StockTrainer", "3d_fullres", "-p", "Coarse")


@pytest.mark.slow
def test_imported_weights_are_accepted_as_pretrained(nnunet, golden, authors_plan, tmp_path):
    plans = authors_plan(nnunet.plans)
    (nnunet.preprocessed / "AuthorsPlans.json").write_text(json.dumps(plans))
    torch.save(golden("sasan").state_dict, tmp_path / "authors.pth")
    nnunet.run("nnunet_ext", "import-weights", "sasan", str(tmp_path / "authors.pth"), str(tmp_path / "ours.pth"))
    printed = train(
        nnunet, "SASANTrainer", "authors", "-p", "AuthorsPlans", "-pretrained_weights", str(tmp_path / "ours.pth")
    )
    assert "encoder.fine.0.mask shape torch.Size([1, 4, 32, 32, 32])" in printed


@pytest.mark.slow
@pytest.mark.long
def test_few_shot_training_beats_no_training_and_copied_masks(all_scans):
    """Without labels on 19 scans; the posterior part is then shown in one scan at a time and found in five others."""
    budget = {"NNUNET_EXT_EPOCHS": "8", "NNUNET_EXT_ITERATIONS": "125", "NNUNET_EXT_VAL_ITERATIONS": "1"}
    train(all_scans, "FAFNetFewShotTrainer", "3d_fullres", **budget)
    split = json.loads((all_scans.preprocessed / "splits_final.json").read_text())[0]
    model = all_scans.model("FAFNetFewShotTrainer", "3d_fullres").parent
    found = few_shot.means(few_shot.dice(model, all_scans.raw, split["train"][:5], split["val"], label=2))
    print(found)
    assert found["trained"] > found["untrained"] + 0.2
    # Two trainings differ by some hundredths; the support's whole mask is behind by 0.17.
    assert found["trained"] > found["whole mask copied"] + 0.1
    assert found["trained, three parts"] > found["untrained, three parts"] + 0.2
    assert found["trained, three parts"] > found["shown slices copied"] + 0.03
