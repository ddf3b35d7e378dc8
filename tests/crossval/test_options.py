"""Options that shape the graph: repeats, groups, a cascade, the report's options, machines; and JSON for scripts."""

import csv
import json

import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.crossval.completion import State, stage_state, training_cases
from nnunet_ext.crossval.machines import differ, record, record_file
from nnunet_ext.crossval.prediction import remove_incomplete
from nnunet_ext.crossval.preprocess import is_resumable, note_plan
from nnunet_ext.crossval.repeat_plan import copy_plan
from nnunet_ext.crossval.splits import divided_groups
from nnunet_ext.crossval.unpack import unpack


def command(graph, name):
    return " ".join(graph.nodes[name].command())


def test_repeats_are_trained_under_copies_of_the_plan(space):
    graph = space.graph(trainers=["SASANTrainer", "StockTrainer"], repeats=2, folds=(0,))
    trainings = [name for name in graph.nodes if name.startswith("train_")]
    assert trainings == [
        *("train_SASANTrainer__nnUNetPlans_0", "train_StockTrainer__nnUNetPlans_0"),
        *("train_SASANTrainer__nnUNetPlans_repeat2_0", "train_StockTrainer__nnUNetPlans_repeat2_0"),
    ]
    assert "-p nnUNetPlans_repeat2" in command(graph, trainings[2])
    assert "plan_nnUNetPlans_repeat2" in graph.nodes[trainings[2]].needs
    assert "preprocess_nnUNetPlans" in graph.nodes[trainings[2]].needs
    assert command(graph, "compare").startswith(
        "nnunet_ext compare -d 4 -c 2d_small -tr SASANTrainer StockTrainer -p nnUNetPlans --repeats 2 -f 0"
    )
    assert "pool_StockTrainer__nnUNetPlans_repeat2" in graph.nodes["compare"].needs


def test_the_plan_of_a_repeat_shares_the_data(space):
    source, target = space.preprocessed / "nnUNetPlans.json", space.preprocessed / "nnUNetPlans_repeat2.json"
    copy_plan(source, target)
    before, after = json.loads(source.read_text()), json.loads(target.read_text())
    assert after["plans_name"] == "nnUNetPlans_repeat2"
    assert {c["data_identifier"] for c in after["configurations"].values()} == {
        c["data_identifier"] for c in before["configurations"].values()
    }
    graph = space.graph(plans=("nnUNetPlans_repeat2",))
    assert graph.nodes["preprocess_nnUNetPlans_repeat2"].state() is State.FINISHED


def test_a_split_keeps_groups_together(space):
    """Pairs of cases as patients."""
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    cases = training_cases(space.raw, space.preprocessed)
    table = space.root / "groups.csv"
    with table.open("w") as file:
        csv.writer(file).writerows((case, f"patient{number // 2}") for number, case in enumerate(cases))
    graph = space.graph(groups=str(table))
    assert command(graph, "unpack_nnUNetPlans").endswith(f"--groups {table}")
    assert f"--groups {table}" in command(graph, "compare")
    unpack(space.preprocessed / "nnUNetPlans_2d", str(table))
    splits = json.loads((space.preprocessed / "splits_final.json").read_text())
    groups = {case: f"patient{number // 2}" for number, case in enumerate(cases)}
    assert divided_groups(splits, groups) == []
    assert sorted(case for split in splits for case in split["val"]) == sorted(cases)
    assert space.experiment(groups=str(table)).groups == str(table)


def test_a_split_that_divides_a_group_is_refused(space):
    unpack(space.preprocessed / "nnUNetPlans_2d")
    with pytest.raises(ValueError, match=r"fold 0 of .*splits_final.json trains and validates on group hippoc"):
        space.experiment(groups="^hippocampus_.")
    with pytest.raises(ValueError, match="finds no group in"):
        space.experiment(groups="^patient")
    (space.preprocessed / "splits_final.json").unlink()
    with pytest.raises(ValueError, match=r"1 group\(s\) cannot be divided among 5 folds"):
        space.experiment(groups="^hippocampus")


@pytest.fixture
def cascade(space):
    """A plan with a cascade, on existing data."""
    file = space.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    full = configurations["3d_fullres"]
    configurations["3d_lowres"] = full | {
        "data_identifier": "nnUNetPlans_3d_lowres",
        "next_stage": "3d_cascade_fullres",
    }
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans))
    return space


def test_a_cascade_trains_all_folds_of_its_earlier_stage_first(cascade):
    (cascade.preprocessed / "splits_final.json").unlink(missing_ok=True)
    images = cascade.raw / "imagesTs"
    graph = cascade.graph(["SASANTrainer"], "3d_cascade_fullres", folds=(1,), test=images)
    lowres = [f"train_3d_lowres_SASANTrainer__nnUNetPlans_{fold}" for fold in range(5)]
    assert [name for name in graph.nodes if name.startswith("train_")] == [*lowres, "train_SASANTrainer__nnUNetPlans_1"]
    assert set(graph.nodes["train_SASANTrainer__nnUNetPlans_1"].needs) >= set(lowres)
    # The validation of the earlier stage writes for the data of the next one.
    prepared = {"preprocess_3d_lowres_nnUNetPlans", "preprocess_nnUNetPlans"}
    assert set(graph.nodes[lowres[0]].needs) >= prepared
    assert command(graph, lowres[4]).startswith("nnUNetv2_train 4 3d_lowres 4 -tr SASANTrainer")
    assert command(graph, "preprocess_3d_lowres_nnUNetPlans").endswith("-plans_name nnUNetPlans -c 3d_lowres")
    names = [name for name in graph.nodes if name.startswith("predict_")]
    assert names == ["predict_3d_lowres_SASANTrainer__nnUNetPlans", "predict_SASANTrainer__nnUNetPlans"]
    assert "-c 3d_lowres -tr SASANTrainer -p nnUNetPlans -f 0 1 2 3 4" in command(graph, names[0])
    previous = cascade.report / "predictions" / "3d_lowres_SASANTrainer__nnUNetPlans"
    assert f"-prev_stage_predictions {previous}" in command(graph, names[1])
    assert names[0] in graph.nodes[names[1]].needs


def test_an_earlier_stage_is_finished_when_it_has_predicted_for_the_next(tmp_path):
    import torch

    fold = tmp_path / "fold_0"
    (fold / "validation").mkdir(parents=True)
    torch.save({}, fold / "checkpoint_final.pth")
    cases = [{"prediction_file": f"/there/validation/{case}.nii.gz"} for case in "ab"]
    (fold / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": cases}))
    folder = tmp_path / "predicted_next_stage" / "3d_cascade_fullres"
    folder.mkdir(parents=True)
    (folder / "a.b2nd").touch()
    assert stage_state(fold, "3d_cascade_fullres") is State.RESUMABLE
    (folder / "b.b2nd").touch()
    assert stage_state(fold, "3d_cascade_fullres") is State.FINISHED


def test_options_reach_the_report(space):
    graph = space.graph(margin=1.5, tolerance=3.0, baseline="SASANTrainer", untimed=True)
    compare = command(graph, "compare")
    assert "--baseline SASANTrainer --margin 1.5 --tolerance 3.0 --untimed -f 0 1" in compare


def test_seconds_are_left_out_where_machines_were_shared_or_differ(space):
    experiment = space.experiment()
    names = ["train_SASANTrainer__nnUNetPlans_0", "train_StockTrainer__nnUNetPlans_1"]
    for name in names:
        record(record_file(experiment, name), shared=False, environment={})
    assert not differ(experiment, names)
    assert "--untimed" not in command(space.graph(), "compare")
    file = record_file(experiment, names[0])
    alone = file.read_text()
    file.write_text(alone.replace('"machine": "', '"machine": "another-'))
    assert differ(experiment, names)
    file.write_text(alone)
    record(file, shared=False, environment={"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "0"})
    assert "--untimed" in command(space.graph(), "compare")


def test_preprocessing_resumes_only_on_the_same_plan(space):
    plan, data = space.preprocessed / "nnUNetPlans.json", space.preprocessed / "nnUNetPlans_2d"
    assert not is_resumable(plan, "2d_small", data)  # who knows by which plan
    cases = {file.name: file.read_bytes() for file in data.glob("*.pkl")}
    note_plan(plan, "2d_small", data)
    assert not is_resumable(plan, "2d_small", data)  # nothing is done
    data.mkdir()
    name = next(iter(cases))
    (data / name).write_bytes(cases[name])
    assert is_resumable(plan, "2d_small", data)
    assert command(space.graph(), "preprocess_nnUNetPlans").split()[1:3] == ["-m", "nnunet_ext.crossval.preprocess"]
    content = json.loads(plan.read_text())
    content["configurations"]["2d_small"]["normalization_schemes"] = ["NoNormalization"]
    plan.write_text(json.dumps(content))
    assert not is_resumable(plan, "2d_small", data)
    assert command(space.graph(), "preprocess_nnUNetPlans").startswith("nnUNetv2_preprocess ")


def test_incomplete_and_outdated_masks_are_predicted_again(space, tmp_path):
    label = next((space.raw / "labelsTr").glob("*.nii.gz")).read_bytes()
    checkpoint = tmp_path / "checkpoint_final.pth"
    for name in ("old", "cut", "whole", "without"):
        (tmp_path / f"{name}.nii.gz").write_bytes(label)
        (tmp_path / f"{name}.npz").write_bytes(b"cut off" if name == "without" else ZIP)
        if name == "old":
            checkpoint.touch()
    (tmp_path / "cut.nii.gz").write_bytes(label[: len(label) // 2])
    remove_incomplete(tmp_path, ".nii.gz", [checkpoint])
    assert sorted(file.name for file in tmp_path.glob("*.n*")) == ["whole.nii.gz", "whole.npz"]
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"")
    remove_incomplete(tmp_path, ".png", [])
    assert len(list(tmp_path.glob("*.png"))) == 1  # the processes that wrote them may have been killed
    remove_incomplete(tmp_path / "nowhere", ".nii.gz", [])


ZIP = b"PK\x05\x06" + bytes(18)  # an empty one


def test_json_for_scripts(space, capsys):
    arguments = ["-d", "4", "-c", "2d_small", "-tr", "StockTrainer", "SASANTrainer", "--folds", "0", "--device", "cpu"]
    arguments += ["-o", str(space.report)]
    assert main(["crossval", *arguments, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    steps = {step["name"]: step for step in plan["steps"]}
    assert steps["plan_nnUNetPlans"]["state"] == "finished"
    training = steps["train_SASANTrainer__nnUNetPlans_0"]
    assert training["to_do"]
    assert training["command"][:4] == ["nnUNetv2_train", "4", "2d_small", "0"]
    assert main(["crossval", *arguments, "--status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["running"] == 0
    assert {step["name"]: step["state"] for step in found["steps"]}["compare"] == "not started"
    assert main(["crossval", *arguments, "--status"]) == 0
    assert "not started compare" in capsys.readouterr().out
