"""What a report shows beside the compared trainings: an ensemble, and masks of other scans."""

import json
from types import SimpleNamespace

import pytest

from nnunet_ext.compare.beyond import Beyond, read_beyond
from nnunet_ext.compare.report.tables import ensemble_table, mask_table

MODELS = ("A__nnUNetPlans__2d", "B__nnUNetPlans__2d")


@pytest.fixture
def ensemble(tmp_path):
    folder = tmp_path / f"ensemble___{'___'.join(MODELS)}___0_1"
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.875}}))
    return folder


def test_an_ensemble_and_masks_are_read_and_shown(ensemble, tmp_path):
    masks = tmp_path / "a=b"
    masks.mkdir()
    for name in ("1.nii.gz", "2.nii.gz", "plans.json"):
        (masks / name).touch()
    beyond = read_beyond(ensemble, [f"A={masks}"], ".nii.gz")
    assert beyond == Beyond(MODELS, 0.875, {"A": 2}, {"A": str(masks)})
    outcome = SimpleNamespace(
        beyond=beyond,
        analysis=SimpleNamespace(nnunet_means={"A": 0.85, "B": 0.8}),
        settings=SimpleNamespace(tolerance=2.0, tolerances={}),
        study=SimpleNamespace(labels=SimpleNamespace(in_pixels=False)),
    )
    assert ensemble_table(outcome).rows == [
        ["A", "85.00"],
        ["B", "80.00"],
        ["ensemble of A__nnUNetPlans__2d and B__nnUNetPlans__2d", "87.50"],
    ]
    assert mask_table(outcome).rows == [["A", "2", str(masks)]]


def test_without_either_there_is_nothing():
    outcome = SimpleNamespace(beyond=read_beyond(None, [], ".nii.gz"), settings=None, study=None)
    assert mask_table(outcome).rows == []


@pytest.mark.parametrize("masks", ["A", "A=missing"])
def test_wrong_masks_are_named(masks):
    with pytest.raises(ValueError, match=f"--masks {masks} must be NAME=FOLDER, an existing folder"):
        read_beyond(None, [masks], ".nii.gz")


def test_a_folder_that_is_no_ensemble_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be a folder that nnU-Net named ensemble___MODEL___MODEL___FOLDS"):
        read_beyond(tmp_path, [], ".nii.gz")
    missing = tmp_path / "ensemble___A___B___0"
    with pytest.raises(FileNotFoundError, match=str(missing)):
        read_beyond(missing, [], ".nii.gz")
