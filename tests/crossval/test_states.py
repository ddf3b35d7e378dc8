"""States are read from nnU-Net's folders, half written files included."""

import json
import os
import shutil

import numpy as np
import torch

from nnunet_ext.crossval.completion import (
    State,
    json_state,
    pooling_state,
    prediction_state,
    preprocessing_state,
    report_state,
    resume_options,
    set_aside_broken,
    training_cases,
    training_state,
    unpacking_state,
)
from nnunet_ext.crossval.unpack import unpack

FINISHED, RESUMABLE, NOT_STARTED = State.FINISHED, State.RESUMABLE, State.NOT_STARTED


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_summary(folder, cases=2, dice=0.5):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"metric_per_case": [{}] * cases, "foreground_mean": {"Dice": dice}}
    (folder / "summary.json").write_text(json.dumps(content))


def save_checkpoint(fold, name):
    fold.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": torch.zeros(1000), "current_epoch": 1}, fold / f"checkpoint_{name}.pth")


def test_a_json_file_counts_when_it_is_whole(tmp_path):
    file = tmp_path / "plans.json"
    assert json_state(file) is NOT_STARTED
    file.write_text('{"configurations": {}}')
    assert json_state(file) is FINISHED
    truncate(file)
    assert json_state(file) is NOT_STARTED
    set_aside_broken(file)
    assert [path.name for path in tmp_path.iterdir()] == ["plans.json.broken"]


def test_training_goes_on_from_what_is_whole(tmp_path):
    fold = tmp_path / "fold_0"
    assert (training_state(fold), resume_options(fold)) == (NOT_STARTED, [])
    save_checkpoint(fold, "best")
    assert (training_state(fold), resume_options(fold)) == (RESUMABLE, ["--c"])
    save_checkpoint(fold, "final")
    assert (training_state(fold), resume_options(fold)) == (RESUMABLE, ["--val"])
    write_summary(fold / "validation")
    assert training_state(fold) is FINISHED
    truncate(fold / "validation" / "summary.json")
    assert training_state(fold) is RESUMABLE
    write_summary(fold / "validation")
    truncate(fold / "checkpoint_final.pth")
    assert (training_state(fold), resume_options(fold)) == (RESUMABLE, ["--c"])
    set_aside_broken(fold / "checkpoint_final.pth")
    set_aside_broken(fold / "checkpoint_best.pth")
    assert sorted(path.name for path in fold.glob("*.pth*")) == ["checkpoint_best.pth", "checkpoint_final.pth.broken"]


def test_an_ensemble_needs_every_validation_case_with_probabilities(tmp_path):
    save_checkpoint(tmp_path, "final")
    write_summary(tmp_path / "validation")
    assert training_state(tmp_path) is FINISHED
    assert training_state(tmp_path, probabilities=True) is RESUMABLE
    for case in ("a", "b"):
        np.savez(tmp_path / "validation" / f"{case}.npz", probabilities=np.zeros(100))
    assert training_state(tmp_path, probabilities=True) is FINISHED
    truncate(tmp_path / "validation" / "b.npz")
    assert training_state(tmp_path, probabilities=True) is RESUMABLE


def test_preprocessing_needs_every_case_whole_and_every_label(space):
    cases = training_cases(space.raw, space.preprocessed)
    data, truth = space.preprocessed / "nnUNetPlans_2d", space.preprocessed / "gt_segmentations"
    assert len(cases) == 10
    assert preprocessing_state(data, cases, truth, ".nii.gz") is FINISHED
    properties = data / f"{cases[3]}.pkl"
    whole = properties.read_bytes()
    truncate(properties)
    assert preprocessing_state(data, cases, truth, ".nii.gz") is NOT_STARTED
    properties.write_bytes(whole)
    (truth / f"{cases[3]}.nii.gz").unlink()
    assert preprocessing_state(data, cases, truth, ".nii.gz") is NOT_STARTED


def test_cases_are_known_without_the_raw_data(space):
    with_raw = training_cases(space.raw, space.preprocessed)
    shutil.rmtree(space.raw)
    assert training_cases(space.raw, space.preprocessed) == with_raw


def test_unpacking_writes_the_split_that_nnunet_would(space, make_trainer):
    """nnU-Net's own trainer makes the same split in folders without one."""
    splits = space.preprocessed / "splits_final.json"
    splits.unlink(missing_ok=True)
    data = space.preprocessed / "nnUNetPlans_2d"
    assert unpacking_state(data, splits) is NOT_STARTED
    unpack(data)
    assert unpacking_state(data, splits) is FINISHED
    ours = json.loads(splits.read_text())
    splits.unlink()
    trainer = make_trainer("StockTrainer", "2d_tiny")
    trainer.preprocessed_dataset_folder_base = str(space.preprocessed)
    trainer.preprocessed_dataset_folder = str(data)
    trainer.do_split()
    assert json.loads(splits.read_text()) == ours


def test_packed_data_are_unpacked_once(space):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy

    data, splits = space.preprocessed / "packed", space.preprocessed / "splits_final.json"
    data.mkdir()
    for case in ("a", "b", "c", "d", "e"):
        array = np.arange(24.0, dtype=np.float32).reshape(1, 2, 3, 4)
        nnUNetDatasetNumpy.save_case(array, array.astype(np.int16), {}, str(data / case))
    assert unpacking_state(data, splits) is NOT_STARTED
    unpack(data)
    assert unpacking_state(data, splits) is FINISHED
    truncate(data / "c_seg.npy")
    assert unpacking_state(data, splits) is NOT_STARTED
    unpack(data)
    assert unpacking_state(data, splits) is FINISHED


def test_what_is_older_than_its_sources_is_done_again(tmp_path):
    folds, pooled = [tmp_path / "fold_0", tmp_path / "fold_1"], tmp_path / "pooled"
    for fold in folds:
        write_summary(fold / "validation")
    assert pooling_state(pooled, folds) is NOT_STARTED
    write_summary(pooled)
    assert pooling_state(pooled, folds) is FINISHED
    later = (pooled / "summary.json").stat().st_mtime + 10
    os.utime(folds[1] / "validation" / "summary.json", (later, later))
    assert pooling_state(pooled, folds) is NOT_STARTED


def test_a_report_of_other_trainers_or_folds_is_another_report(tmp_path):
    def state(names=("A", "B"), folds=("0", "1"), baseline=None):
        return report_state(tmp_path, names, folds, [], baseline)

    assert state() is NOT_STARTED
    (tmp_path / "summary.json").write_text(json.dumps({"entrants": ["B", "A"], "folds": ["0", "1"], "baseline": "B"}))
    assert state() is NOT_STARTED
    (tmp_path / "report.html").touch()
    assert state() is FINISHED
    assert state(names=("A", "B", "C")) is NOT_STARTED
    assert state(folds=("0",)) is NOT_STARTED
    assert state(baseline="B") is FINISHED
    assert state(baseline="A") is NOT_STARTED


def test_predictions_need_every_case(tmp_path):
    (tmp_path / "patient.1.nii.gz").touch()
    assert prediction_state(tmp_path, ["patient.1"], ".nii.gz", []) is FINISHED
    assert prediction_state(tmp_path, ["patient.1", "patient.2"], ".nii.gz", []) is NOT_STARTED
    assert prediction_state(tmp_path, [], ".nii.gz", []) is NOT_STARTED


def test_the_split_of_a_folder_is_kept(space):
    splits = space.preprocessed / "splits_final.json"
    splits.write_text(json.dumps([{"train": ["x"], "val": ["y"]}]))
    unpack(space.preprocessed / "nnUNetPlans_2d")
    assert json.loads(splits.read_text()) == [{"train": ["x"], "val": ["y"]}]
