"""The graph: its steps, their order and commands, missing steps, and refusals."""

import json
import re
import shutil

import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.description import dry_run, dry_run_text
from nnunet_ext.crossval.experiment import make_experiment
from nnunet_ext.crossval.gpus import make_slots
from nnunet_ext.crossval.steps import build_graph
from nnunet_ext.crossval.unpack import unpack


def finish(space, *trainers, folds=(0, 1)):
    """Files in the form of nnU-Net's, in place of trainings."""
    import torch

    for trainer in trainers:
        model = space.results / f"{trainer}__nnUNetPlans__2d_small"
        for fold in folds:
            (model / f"fold_{fold}" / "validation").mkdir(parents=True)
            torch.save({}, model / f"fold_{fold}" / "checkpoint_final.pth")
            for folder in (model / f"fold_{fold}" / "validation", model / "crossval_results_folds_0_1"):
                folder.mkdir(exist_ok=True)
                (folder / "summary.json").write_text('{"metric_per_case": [], "foreground_mean": {"Dice": 0.5}}')


def commands(graph):
    return {name: " ".join(node.command()) for name, node in graph.nodes.items()}


def test_parts_and_commands(space):
    graph = space.graph(ensemble=True, test=space.raw / "imagesTs")
    stock, sasan = "StockTrainer__nnUNetPlans", "SASANTrainer__nnUNetPlans"
    assert list(graph.nodes) == [
        *("fingerprint", "plan_nnUNetPlans", "preprocess_nnUNetPlans", "unpack_nnUNetPlans"),
        *(f"train_{stock}_0", f"train_{sasan}_0", f"train_{stock}_1", f"train_{sasan}_1"),
        *(f"pool_{stock}", f"pool_{sasan}", "compare", "ensemble"),
        *(f"predict_{stock}", f"predict_{sasan}", "predict_ensemble", "report"),
    ]
    prepared = ("fingerprint", "plan_nnUNetPlans", "preprocess_nnUNetPlans", "unpack_nnUNetPlans")
    assert graph.nodes[f"train_{sasan}_1"].needs == prepared
    assert graph.nodes[f"pool_{sasan}"].needs == (f"train_{sasan}_0", f"train_{sasan}_1")
    assert graph.nodes["compare"].needs == (f"pool_{stock}", f"pool_{sasan}")
    found = commands(graph)
    assert found["plan_nnUNetPlans"] == "nnUNetv2_plan_experiment -d 4 -pl ExperimentPlanner"
    assert found["preprocess_nnUNetPlans"] == "nnUNetv2_preprocess -d 4 -plans_name nnUNetPlans -c 2d_small"
    assert found[f"train_{sasan}_1"] == "nnUNetv2_train 4 2d_small 1 -tr SASANTrainer -p nnUNetPlans -device cpu --npz"
    assert found["compare"] == (
        f"nnunet_ext compare -d 4 -c 2d_small -tr StockTrainer SASANTrainer -p nnUNetPlans -f 0 1 -o {space.report}"
    )
    assert "BEST" in found["predict_ensemble"]
    assert graph.nodes["report"].needs == ("compare", f"predict_{stock}", f"predict_{sasan}", "predict_ensemble")
    folders = [f"{name}={space.report / 'predictions' / name}" for name in (stock, sasan, "ensemble")]
    assert found["report"] == f"{found['compare']} --masks {' '.join(folders)}"
    assert "report" not in space.graph().nodes


def test_several_gpus_train_one_fold(space):
    graph = space.graph(device="cuda", num_gpus=2)
    assert commands(graph)["train_SASANTrainer__nnUNetPlans_0"].endswith("-device cuda -num_gpus 2")


def test_only_what_is_missing_is_to_do(space):
    graph = space.graph()
    finish(space, "StockTrainer")
    states = graph.states()
    assert states["train_StockTrainer__nnUNetPlans_1"] is State.FINISHED
    missing = [node.name for node in graph.missing(states)]
    assert "pool_StockTrainer__nnUNetPlans" not in missing
    assert missing[-4:] == [
        "train_SASANTrainer__nnUNetPlans_0",
        "train_SASANTrainer__nnUNetPlans_1",
        "pool_SASANTrainer__nnUNetPlans",
        "compare",
    ]


def test_preprocessed_data_are_not_missed_when_all_is_trained(space):
    graph = space.graph()
    finish(space, "StockTrainer", "SASANTrainer")
    shutil.rmtree(space.preprocessed / "nnUNetPlans_2d")
    states = graph.states()
    assert states["preprocess_nnUNetPlans"] is State.NOT_STARTED
    assert [node.name for node in graph.missing(states)] == ["compare"]
    assert "not started preprocess_nnUNetPlans  (not needed)" in dry_run_text(dry_run(space.experiment(), graph))


@pytest.mark.parametrize("lost", ["dataset_fingerprint.json", "nnUNetPlans_2d", "gt_segmentations"])
def test_what_a_training_reads_is_made_again_alone(space, lost):
    """With all that follows it finished."""
    unpack(space.preprocessed / "nnUNetPlans_2d")
    path = space.preprocessed / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    graph = space.graph()
    missing = [node.name for node in graph.missing(graph.states())]
    expected = "fingerprint" if lost.endswith(".json") else "preprocess_nnUNetPlans"
    assert [name for name in missing if not name.startswith(("train", "pool", "compare"))] == [expected]


def test_a_fold_that_is_removed_is_trained_again_and_what_was_made_of_it(space):
    graph = space.graph()
    finish(space, "StockTrainer", "SASANTrainer")
    space.report.mkdir()
    content = {"entrants": ["StockTrainer", "SASANTrainer"], "folds": ["0", "1"]}
    (space.report / "summary.json").write_text(json.dumps(content))
    (space.report / "report.html").touch()
    assert graph.missing(graph.states()) == []
    shutil.rmtree(space.results / "SASANTrainer__nnUNetPlans__2d_small" / "fold_1")
    missing = [node.name for node in graph.missing(graph.states())]
    assert missing[-3:] == ["train_SASANTrainer__nnUNetPlans_1", "pool_SASANTrainer__nnUNetPlans", "compare"]
    assert not any("StockTrainer" in name for name in missing)
    assert "outdated    compare  after pool_SASANTrainer__nnUNetPlans\n" in dry_run_text(
        dry_run(space.experiment(), graph)
    )


def test_a_fold_that_is_validated_anew_is_pooled_anew(space):
    """For an ensemble its validation is repeated; what was pooled of the first one is finished until then."""
    finish(space, "StockTrainer", "SASANTrainer")
    graph = space.graph(ensemble=True)
    for model in ("StockTrainer", "SASANTrainer"):
        validation = space.results / f"{model}__nnUNetPlans__2d_small" / "fold_0" / "validation"
        (validation / "summary.json").write_text('{"metric_per_case": [{}], "foreground_mean": {"Dice": 0.5}}')
        pooled = validation.parent.parent / "crossval_results_folds_0_1" / "summary.json"
        pooled.write_text(pooled.read_text())
    states = graph.states()
    assert states["pool_SASANTrainer__nnUNetPlans"] is State.FINISHED
    missing = [node.name for node in graph.missing(states)]
    assert "train_SASANTrainer__nnUNetPlans_0" in missing
    assert "train_SASANTrainer__nnUNetPlans_1" not in missing
    assert "pool_SASANTrainer__nnUNetPlans" in missing


def test_plans_with_the_same_data_are_preprocessed_once(space):
    plans = json.loads((space.preprocessed / "nnUNetPlans.json").read_text()) | {"plans_name": "OwnPlans"}
    (space.preprocessed / "OwnPlans.json").write_text(json.dumps(plans))
    graph = space.graph(plans=("nnUNetPlans", "OwnPlans"))
    assert [name for name in graph.nodes if "process" in name] == ["preprocess_nnUNetPlans"]
    needs = ("fingerprint", "plan_OwnPlans", "preprocess_nnUNetPlans", "unpack_nnUNetPlans")
    assert graph.nodes["train_SASANTrainer__OwnPlans_0"].needs == needs
    assert "-tr StockTrainer SASANTrainer -p nnUNetPlans OwnPlans" in commands(graph)["compare"]
    plans["configurations"]["2d_small"]["data_identifier"] = "other"
    (space.preprocessed / "OwnPlans.json").write_text(json.dumps(plans))
    assert "preprocess_OwnPlans" in space.graph(plans=("nnUNetPlans", "OwnPlans")).nodes


def test_plans_that_are_not_there_are_written(space):
    graph = space.graph(plans=("nnUNetResEncUNetMPlans", "SmallPlans"), plan=True)
    assert commands(graph)["plan_nnUNetResEncUNetMPlans"].endswith("-pl nnUNetPlannerResEncM")
    assert graph.nodes["plan_SmallPlans"].needs == ("fingerprint", "plan_nnUNetResEncUNetMPlans")
    assert commands(graph)["plan_SmallPlans"] == "nnunet_ext plan -d 4 -tr SASANTrainer --plans-name SmallPlans"


def test_a_copied_plan_keeps_no_other_name(space):
    shutil.copy(space.preprocessed / "nnUNetPlans.json", space.preprocessed / "CopiedPlans.json")
    with pytest.raises(ValueError, match=r"CopiedPlans.json is 'nnUNetPlans'; it must be 'CopiedPlans'"):
        space.graph(plans=("CopiedPlans",))


def test_one_trainer_is_pooled_but_not_compared(space):
    assert list(space.graph(trainers=["SASANTrainer"]).nodes)[-1] == "pool_SASANTrainer__nnUNetPlans"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configuration": "4d"}, "unknown configuration '4d' in .*; known: 2d, "),
        ({"configuration": "3d_cascade_fullres"}, "unknown configuration '3d_cascade_fullres'"),
        ({"trainers": ["SASANTrainr"]}, "unknown trainer 'SASANTrainr'.*ours: EMNetATrainer"),
        ({"trainers": ["SASANTrainer", "SASANTrainer"]}, "SASANTrainer on nnUNetPlans is named twice"),
        ({"plans": ("a", "b", "c")}, "-p has 3 names for 2 trainers"),
        (
            {"trainers": ["nnUNetTrainer"], "plans": ("Mine",)},
            "there is no .*Mine.json; known: .*; to write it: nnunet_ext plan",
        ),
        ({"folds": (0, 0)}, "must be different numbers"),
        ({"num_gpus": 2}, "several devices with --device cuda only"),
        ({"trainers": ["SASANTrainer"], "ensemble": True}, "--ensemble needs at least two trainers"),
        ({"test": "/no/such"}, "--test /no/such is not a folder"),
        ({"environment": {}}, "nnUNet_raw is not set"),
    ],
)
def test_refusals(space, options, message):
    with pytest.raises(ValueError, match=message):
        space.graph(**options)


def test_a_test_set_without_images_of_the_datasets_kind_is_refused(space):
    others = space.root / "others"
    others.mkdir()
    (others / "case_0000.nii").touch()
    with pytest.raises(ValueError, match=r"--test: .*others has no scan.*named CASE_0000\.nii\.gz, as nnU-Net"):
        space.experiment(test=others)


@pytest.mark.parametrize(("dataset", "message"), [("77", "Could not find a dataset"), ("Heart", "must be a number")])
def test_unknown_datasets(space, dataset, message):
    with pytest.raises(ValueError, match=message):
        make_experiment(dataset, "2d", ["SASANTrainer"], environment=space.environment)


def test_nnunets_and_others_trainers_are_known(space, tmp_path, monkeypatch):
    (tmp_path / "MineTrainer.py").write_text("class MineTrainer(nnUNetTrainer):\n    pass\n")
    environment = space.environment | {"nnUNet_extTrainer": str(tmp_path)}
    space.experiment(trainers=["nnUNetTrainer_1epoch", "MineTrainer"], environment=environment)


def test_dry_run_prints_states_and_commands_and_does_nothing(space, capsys):
    options = ["-d", "4", "-c", "2d_small", "-tr", "StockTrainer", "SASANTrainer", "--folds", "0", "--device", "cpu"]
    assert main(["crossval", *options, "-o", str(space.report), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"finished +plan_nnUNetPlans\n", printed)
    assert re.search(r"not started +train_SASANTrainer__nnUNetPlans_0.*\n +nnUNetv2_train 4 2d_small 0 -tr", printed)
    assert re.search(r"not started +compare  after pool_StockTrainer__nnUNetPlans, pool_SASAN", printed)
    assert list(space.results.iterdir()) == []


def test_a_user_mistake_is_one_line(space, capsys):
    assert main(["crossval", "-d", "4", "-c", "2d_small", "-tr", "X", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("gpus", "num_gpus", "visible", "expected"),
    [
        (["0", "1"], 1, "", ["0", "1"]),
        (["0", "1", "2", "3"], 2, "", ["0,1", "2,3"]),
        (None, 1, "4,5", ["4", "5"]),
        (None, 1, "", ["0"]),
        (None, 2, "", ["0,1"]),
    ],
)
def test_slots(gpus, num_gpus, visible, expected):
    slots = make_slots("cuda", gpus, num_gpus, environment={"CUDA_VISIBLE_DEVICES": visible})
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == expected


@pytest.mark.parametrize(("device", "gpus"), [("cuda", ["0", "0"]), ("cuda", ["0", "1", "2"]), ("cpu", ["0"])])
def test_wrong_gpus(device, gpus):
    with pytest.raises(ValueError, match=f"--gpus {' '.join(gpus)}"):
        make_slots(device, gpus, 2)


def test_build_graph_reads_the_plan_that_appears_later(space):
    plan = space.preprocessed / "nnUNetPlans.json"
    content = plan.read_text()
    plan.unlink()
    graph = build_graph(space.experiment())
    assert graph.nodes["preprocess_nnUNetPlans"].state() is State.NOT_STARTED
    plan.write_text(content)
    assert graph.nodes["preprocess_nnUNetPlans"].state() is State.FINISHED
