"""Plans by traced memory: their use by nnU-Net, their limits, and the data that they share."""

import json
import re

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.cli.main import main
from nnunet_ext.nnunet.trainers import find_trainer, known_trainers
from nnunet_ext.planning.planner import GIGABYTE, MARGIN, default_plans_name
from nnunet_ext.plans import PLANNERS, EMNetPlanner, StockPlanner, planner_for
from nnunet_ext.profiling.memory import trace_step
from nnunet_ext.profiling.trainer_step import trainer_step
from tests.helpers.fingerprints import Dataset

ISOTROPIC = ([48, 64, 56], [1.0, 1.0, 1.0])
SHAPES = {
    "isotropic": ISOTROPIC,
    "anisotropic": ([14, 96, 80], [4.0, 0.6, 0.6]),
    "two modalities": (*ISOTROPIC, 2),
    "2D": ([1, 96, 128], [999.0, 1.0, 1.0]),
    "very small": ([6, 9, 7], [1.0, 1.0, 1.0]),
}
GIGABYTES = {
    "SASANTrainer": 0.5,
    "EMNetTrainer": 0.5,
    "SALSTMTrainer": 0.6,
    "LSTMSATrainer": 0.6,
    "LSTMSAMTUNetTrainer": 3,
    "FAFNetTrainer": 0.6,
    "UMambaEncTrainer": 0.6,
    "StockTrainer": 0.4,
}


def plan(dataset, trainer, gigabytes, *options):
    """Through the command, read from the file."""
    arguments = ["plan", "-d", "321", "-tr", trainer, "--gpu-memory", str(gigabytes), *options]
    assert main(arguments) == 0
    return dataset.plans(default_plans_name(find_trainer(trainer)))


def traced(trainer, plans, name, dataset_json):
    batch_size = PlansManager(plans).get_configuration(name).batch_size
    return trace_step(trainer_step(find_trainer(trainer), plans, name, dataset_json, batch_size)).total


def check(dataset, trainer, gigabytes, plans):
    """Every configuration stays below the target, trains a step and predicts through nnU-Net."""
    dataset_json = json.loads((dataset.preprocessed / "dataset.json").read_text())
    manager = PlansManager(plans)
    for name in plans["configurations"]:
        assert traced(trainer, plans, name, dataset_json) <= gigabytes * (1 - MARGIN) * GIGABYTE
        configuration = manager.get_configuration(name)
        assert configuration.batch_size >= 2
        channels = determine_num_input_channels(manager, configuration, dataset_json)
        network = find_trainer(trainer).build_network_architecture(manager, configuration, channels, 3, True)
        patch = configuration.patch_size
        if hasattr(network, "set_support"):
            network.set_support(torch.randn(2, channels, *patch[-2:]), torch.rand(2, 2, *patch[-2:]) > 0.5)
        outputs = network(torch.randn(2, channels, *patch))
        outputs = outputs if isinstance(outputs, list) else [outputs]
        assert outputs[0].shape == (2, 3, *patch)
        sum(y.square().mean() for y in outputs).backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
        predict(network, manager, configuration, dataset_json, trainer, channels)


def predict(network, manager, configuration, dataset_json, trainer, channels):
    network.decoder.deep_supervision = False  # as nnU-Net builds it for prediction
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=torch.device("cpu"))
    parameters = [network.state_dict()]
    predictor.manual_initialization(network, manager, configuration, parameters, dataset_json, trainer, None)
    patch = configuration.patch_size
    size = (3 if len(patch) == 2 else patch[0] + 2, patch[-2] + 2, patch[-1])
    logits = predictor.predict_logits_from_preprocessed_data(torch.randn(channels, *size))
    assert logits.shape == (3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    "trainer",
    ["SASANTrainer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("EMNetTrainer", "UMambaEncTrainer"))],
)
def test_a_plan_is_below_its_target_trains_and_predicts(dataset, trainer, capsys):
    dataset.describe(*ISOTROPIC)
    plans = plan(dataset, trainer, GIGABYTES[trainer], "-c", "3d_fullres")
    assert list(plans["configurations"]) == ["3d_fullres"]
    network = planner_for(find_trainer(trainer)).network
    described = plans["configurations"]["3d_fullres"]["architecture"]
    assert described["network_class_name"] == f"nnunet_ext.networks.{network.__name__}"
    check(dataset, trainer, GIGABYTES[trainer], plans)
    printed = capsys.readouterr().out
    for part in ("patch  ", "strides", "saved for backward", "largest transient", "multiply-adds", "parameters, M"):
        assert part in printed
    assert "patch from 48 x 64 x 56 shrunk; batch: " in printed
    assert "nnUNetv2_preprocess -d 321 -plans_name" in printed
    assert f"nnUNetv2_train 321 3d_fullres 0 -tr {trainer} -p nnUNet" in printed


EVERY_SHAPE = ("SASANTrainer", "EMNetTrainer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "shape"),
    [(trainer, shape) for trainer in EVERY_SHAPE for shape in SHAPES if shape != "isotropic"]
    + [
        pytest.param(trainer, shape, marks=pytest.mark.long)
        for trainer in GIGABYTES
        if trainer not in EVERY_SHAPE
        for shape in ("anisotropic", "2D")
    ],
)
def test_all_shapes_and_networks(dataset, trainer, shape):
    dataset.describe(*SHAPES[shape])
    plans = plan(dataset, trainer, GIGABYTES[trainer], "-c", "2d" if shape == "2D" else "3d_fullres")
    check(dataset, trainer, GIGABYTES[trainer], plans)


@pytest.mark.slow
@pytest.mark.long
def test_very_large_images_get_a_lower_resolution_and_a_second_stage_that_fit(dataset):
    trainer = "SASANTrainer"
    dataset.describe([400, 512, 512], [1.0, 0.8, 0.8])
    plans = plan(dataset, trainer, 24, "-c", "3d_fullres", "3d_lowres")
    assert list(plans["configurations"]) == ["3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    dataset_json = json.loads((dataset.preprocessed / "dataset.json").read_text())
    totals = {name: traced(trainer, plans, name, dataset_json) for name in plans["configurations"]}
    assert max(totals.values()) <= 24 * (1 - MARGIN) * GIGABYTE
    assert totals["3d_cascade_fullres"] > totals["3d_fullres"]  # it reads two labels more


@pytest.mark.slow
def test_a_budget_too_small_states_the_memory_needed(dataset, capsys):
    dataset.describe([20, 24, 24], [1.0, 1.0, 1.0])
    arguments = ["plan", "-d", "321", "-tr", "EMNetTrainer", "-c", "3d_fullres", "--gpu-memory"]
    assert main([*arguments, "0.02"]) == 2
    error = capsys.readouterr().err
    found = re.search(r"the smallest patch .* needs (\S+) GB for a batch of 2 .* give at least (\S+) GB", error)
    assert "3d_fullres: " in error
    assert "more than the 0.018 GB that 0.02 GB of GPU memory leave" in error
    assert float(found[1]) < float(found[2])
    assert not list(dataset.preprocessed.glob("nnUNet*.json"))
    assert main([*arguments, found[2]]) == 0


def test_the_batch_is_the_largest_that_fits(dataset):
    dataset.describe([1, 64, 64], [999.0, 1.0, 1.0])
    dataset_json = json.loads((dataset.raw / "dataset.json").read_text())
    planner = StockPlanner(321, 0.25, configurations=["2d"])
    planner.max_dataset_covered = 1
    plans = planner.plan_experiment()
    batch_size = plans["configurations"]["2d"]["batch_size"]
    assert 2 < batch_size < Dataset.cases
    assert planner.reasons["2d"] == "patch not shrunk; batch: what fits"
    assert traced("StockTrainer", plans, "2d", dataset_json) <= planner.target
    plans["configurations"]["2d"]["batch_size"] += 1
    assert traced("StockTrainer", plans, "2d", dataset_json) > planner.target


def test_a_dry_run_writes_no_plan(dataset, capsys):
    """As text, and as JSON of the same decisions."""
    dataset.describe(*ISOTROPIC)
    arguments = ["plan", "-d", "321", "-tr", "StockTrainer", "-c", "2d", "--dry-run"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "Nothing was written" in text
    assert main([*arguments, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert not list(dataset.preprocessed.glob("nnUNet*.json"))
    assert (content["trainer"], content["file"], content["not_planned"]) == ("StockTrainer", None, {})
    decided = content["configurations"]["2d"]
    assert f"2d: {decided['reason']}; data: {decided['data_identifier']}" in text
    assert f"{decided['memory']['total'] / 1e9:.2f}" in text
    assert decided["memory"]["total"] <= content["target_bytes"]
    assert " x ".join(map(str, decided["patch_size"])) in text
    assert content["next"][-1] == f"nnUNetv2_train 321 2d 0 -tr StockTrainer -p {content['plans_name']}"


def test_options_and_older_configurations(dataset):
    dataset.describe(*ISOTROPIC)
    arguments = ["plan", "-d", dataset.name, "-tr", "nnUNetTrainer", "--plans-name", "Mine"]
    assert main([*arguments, "-c", "2d"]) == 0
    assert main([*arguments, "-c", "3d_fullres", "--overwrite-target-spacing", "2", "1.5", "1"]) == 0
    configurations = dataset.plans("Mine")["configurations"]
    assert list(configurations) == ["3d_fullres", "2d"]
    assert configurations["3d_fullres"]["spacing"] == [2.0, 1.5, 1.0]
    assert configurations["2d"]["spacing"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-tr", "Nothing"], "unknown trainer 'Nothing'; known: .*SASANTrainer"),
        (["-tr", "SASANTrainer", "-c", "4d"], "unknown configuration '4d'; known: 2d, 3d_fullres, 3d_lowres"),
        (["-tr", "SASANTrainer", "--gpu-memory", "0"], "--gpu-memory 0 must be positive"),
        (["-tr", "SASANTrainer", "--overwrite-target-spacing", "1", "0", "1"], "must be three positive numbers"),
        (["-tr", "StockTrainer", "--preset", "paper"], "StockTrainer has no preset from a paper"),
        (["-tr", "FAFNetTrainer", "--preset", "paper"], "'resnet101'.* plan it for FAFNetResNet101Trainer"),
        (["-tr", "LSTMSATrainer", "--preset", "paper"], "'mt_unet'.* plan it for LSTMSAMTUNetTrainer"),
        (["-tr", "StockTrainer", "-d", "322"], "322"),
    ],
)
def test_mistakes_are_named(dataset, capsys, options, message):
    dataset.describe(*ISOTROPIC)
    assert main(["plan", "-d", "321", *options]) == 2
    assert re.search(message, capsys.readouterr().err)


PRESETS = {
    "SASANTrainer": ("3d_fullres", [96, 96, 96]),
    "EMNetTrainer": ("3d_fullres", [128, 128, 128]),
    "LSTMSAMTUNetTrainer": ("3d_fullres", [8, 224, 224]),
    "FAFNetResNet101Trainer": ("2d", [257, 257]),
}


@pytest.mark.parametrize("trainer", PRESETS)
def test_presets_are_the_papers(dataset, trainer):
    dataset.describe(*ISOTROPIC)
    name, patch = PRESETS[trainer]
    plans = planner_for(find_trainer(trainer))(321, 1, trainer=find_trainer(trainer), use_preset=True).plan_experiment()
    (configuration,) = plans["configurations"].values()
    assert list(plans["configurations"]) == [name]
    assert configuration["patch_size"] == patch
    assert json.loads(json.dumps(plans)) == plans
    if trainer == "EMNetTrainer":
        assert configuration["spacing"] == [2.0, 1.5, 1.5]  # the paper's 1.5 x 1.5 x 2.0 in the order of array axes
    if trainer == "SASANTrainer":
        assert configuration["architecture"]["arch_kwargs"]["features_per_stage"] == [32, 64, 128, 256, 512]


def test_every_trainer_has_a_planner_and_a_plan_of_its_own():
    for name in known_trainers():
        planner = planner_for(find_trainer(name))
        assert planner in PLANNERS
        assert (planner is StockPlanner) == (name == "StockTrainer")
    names = {default_plans_name(find_trainer(name)) for name in ("SASANTrainer", "EMNetATrainer", "nnUNetTrainer")}
    assert names == {"nnUNetSASANPlans", "nnUNetEMNetAPlans", "nnUNetTracedPlans"}
    assert default_plans_name(find_trainer("SASANTrainerDiceCE")) == "nnUNetSASANPlans"


def test_a_variants_plan_names_the_variant(dataset):
    """So that nnU-Net's own trainer trains it too."""
    dataset.describe(*ISOTROPIC)
    planner = EMNetPlanner(321, 24, trainer=find_trainer("EMNetBTrainer"), configurations=["2d"])
    arguments = planner.plan_experiment()["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert arguments["variant"] == "B"


@pytest.mark.slow
def test_regions_an_ignore_label_and_the_trainers_own_loss_are_traced(dataset):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    dataset.describe(*ISOTROPIC, labels=labels)
    file = dataset.raw / "dataset.json"
    dataset_json = json.loads(file.read_text()) | {"regions_class_order": [1, 2]}
    file.write_text(json.dumps(dataset_json))
    plans = StockPlanner(321, 1, configurations=["2d"]).plan_experiment()
    for trainer in ("SASANTrainer", "StockTrainer", "FAFNetTrainer"):
        assert traced(trainer, plans, "2d", dataset_json) > 0


@pytest.mark.slow
def test_data_are_shared_where_preprocessing_is_the_same(dataset):
    dataset.describe(*ISOTROPIC)

    def planned(plans_name, spacing=None):
        planner = StockPlanner(
            321, 24, plans_name=plans_name, overwrite_target_spacing=spacing, configurations=["2d", "3d_fullres"]
        )
        plans = planner.plan_experiment()
        planner.write(plans)
        return {name: c["data_identifier"] for name, c in plans["configurations"].items()}

    own = {"2d": "First_2d", "3d_fullres": "First_3d_fullres"}
    assert planned("First") == own
    assert planned("First") == own
    assert planned("Second") == own
    assert planned("Coarser", [2, 2, 2]) == {"2d": "Coarser_2d", "3d_fullres": "Coarser_3d_fullres"}
    # Planned again for other data while another plan still uses the old ones: these must not be overwritten.
    assert planned("First", [3, 3, 3])["3d_fullres"] == "First_3d_fullres_2"
    assert dataset.plans("Second")["configurations"]["3d_fullres"]["data_identifier"] == "First_3d_fullres"
