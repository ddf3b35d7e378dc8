"""Plans for networks of a user's own file, and for trainers that know nothing of this package."""

import re

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.cli.main import main
from nnunet_ext.nnunet.trainers import build_network, find_trainer, is_own_trainer, trainer_folder
from nnunet_ext.planning.patches import rounded_up
from nnunet_ext.plans import EMNetPlanner, OwnNetworkPlanner, StockPlanner, planner_for
from nnunet_ext.profiling.counts import trainer_costs
from nnunet_ext.training import PluginTrainer
from tests.helpers.own_trainers import write_own_trainers

SHAPE, SPACING = [12, 30, 26], [1.0, 1.0, 1.0]


@pytest.fixture
def own(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", write_own_trainers(tmp_path / "mine"))
    monkeypatch.setattr(type(dataset), "cases", 4)
    return dataset.describe(SHAPE, SPACING)


def plan(dataset, trainer, configuration="3d_fullres"):
    assert main(["plan", "-d", "321", "-tr", trainer, "-c", configuration, "--plans-name", "P"]) == 0
    return dataset.plans("P")["configurations"][configuration]


def test_a_refused_patch_is_enlarged_and_named(own, capsys):
    planned = plan(own, "HalvingTrainer")
    assert planned["patch_size"] == [16, 32, 32]
    assert planned["architecture"]["network_class_name"] == "own_networks.Halving"
    assert "patch_size" not in planned["architecture"]["arch_kwargs"]
    printed = capsys.readouterr().out
    assert re.search(
        r"the network of HalvingTrainer refuses the patch 12 x 32 x 28 \(RuntimeError: Sizes of tensors.*\); planned "
        "in multiples of 8 instead",
        printed,
    )
    assert main(["networks", "--trainers", "HalvingTrainer"]) == 2
    assert "--trainers needs --plans" in capsys.readouterr().err


def test_declared_multiples_are_kept(own, capsys):
    assert plan(own, "DeclaredTrainer", "2d")["patch_size"] == [32, 48]
    assert "refuses" not in capsys.readouterr().out


def test_networks_are_counted_from_a_plan(own):
    plan(own, "HalvingTrainer")
    (own.preprocessed / "dataset.json").write_bytes((own.raw / "dataset.json").read_bytes())
    ours, theirs = trainer_costs(["HalvingTrainer", "OldTrainer"], own.preprocessed / "P.json", "3d_fullres")
    assert (ours["network"], ours["parameters"]) == ("Halving", 4 * 512 + 4 + 16 * 512 + 4 + 5 * 3 + 3 + 4 * 3 + 3)
    assert theirs["parameters"] == 8 * 27 + 8 + 3 * 8 + 3


def test_the_former_signature_is_planned(own):
    planned = plan(own, "OldTrainer")
    assert planned["patch_size"] == [12, 32, 28]
    assert planned["architecture"]["network_class_name"].endswith("PlainConvUNet")


def test_the_trainers_arguments_outputs_and_settings_build_the_network(own):
    plan(own, "HalvingTrainer", "2d")
    trainer = find_trainer("HalvingTrainer")
    manager = PlansManager(own.plans("P"))
    arguments = {"input_channels": 1, "num_classes": 3}
    configuration = manager.get_configuration("2d")
    x = torch.randn(1, 1, *configuration.patch_size)
    supervised = build_network(trainer, manager, configuration, **arguments, deep_supervision=True)
    assert supervised.slope == 0.2
    fine, coarse = supervised(x)
    assert fine.shape[2:] == x.shape[2:]
    assert coarse.shape[2] == x.shape[2] // 8
    single = build_network(trainer, manager, configuration, **arguments, deep_supervision=False)(x)
    assert single.shape == fine.shape


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            "RefusingTrainer",
            r"RefusingTrainer refuses the patch 12 x 32 x 28 \(ValueError: Wrong cannot be built",
        ),
        ("MissingTrainer", "`network_class`='no_such_package.networks.Net' cannot be imported: .*is no_such_package"),
        ("NoSuchTrainer", "unknown trainer 'NoSuchTrainer'; known: .*nnUNet_extTrainer"),
    ],
)
def test_mistakes_are_named(own, trainer, message, capsys):
    assert main(["plan", "-d", "321", "-tr", trainer, "-c", "3d_fullres"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_broken_file_in_the_folder_is_named(own, tmp_path, capsys):
    (tmp_path / "mine" / "a_broken_file.py").write_text("import no_such_module\n")
    assert main(["plan", "-d", "321", "-tr", "HalvingTrainer"]) == 2
    assert "No module named 'no_such_module'" in capsys.readouterr().err


def test_planners_are_the_trainers_own_or_the_networks():
    class Named(PluginTrainer):
        planner = "nnunet_ext.plans.EMNetPlanner"

    class Nothing(PluginTrainer):
        planner = "nnunet_ext.plans.NoPlanner"

    class Own(PluginTrainer):
        network_class = "torch.nn.Identity"

    assert planner_for(Named) is EMNetPlanner
    assert planner_for(Own) is OwnNetworkPlanner
    assert planner_for(find_trainer("nnUNetTrainer")) is StockPlanner
    with pytest.raises(ValueError, match=r"`planner`='nnunet_ext.plans.NoPlanner' of Nothing is no subclass of Traced"):
        planner_for(Nothing)


def test_multiples_hold_together():
    assert rounded_up((12, 30, 26), 1, 1, None) == (12, 30, 26)
    assert rounded_up((12, 30, 26), (1, 8, 24), 2, [(2, 2, 2), (2, 2, 2)]) == (12, 32, 48)
    assert rounded_up((30, 26), (1, 8, 24), 1, None) == (32, 48)
    with pytest.raises(ValueError, match=r"`patch_multiple`=\(8,\) must be a positive number, or one per axis"):
        rounded_up((30, 26), (8,), 1, None)


def test_own_trainers_are_told_from_ours_and_nnunets(own, tmp_path):
    assert trainer_folder("OldTrainer") == tmp_path / "mine"
    assert [is_own_trainer(name) for name in ("OldTrainer", "SASANTrainer", "nnUNetTrainer")] == [True, False, False]
    assert trainer_folder("NoSuchTrainer") is None
