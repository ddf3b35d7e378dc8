"""Checks of `nnunet_ext plan` before it plans."""

import json
import re

import numpy as np
import pytest

from nnunet_ext.cli.main import main
from nnunet_ext.planning.verification import check_labels, flat_axis
from tests.helpers.label_files import DATASET, SHAPE, blobs, write


class Raw:
    """A raw dataset of four cases, in nnU-Net's folders of this process."""

    def __init__(self, root, monkeypatch, shape=(8, 24, 20)):
        for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / key).mkdir()
            monkeypatch.setenv(key, str(root / key))
        self.folder = root / "nnUNet_raw" / "Dataset777_Inputs"
        self.preprocessed = root / "nnUNet_preprocessed" / "Dataset777_Inputs"
        for case in range(4):
            image = np.random.default_rng(case).normal(100, 10, shape).astype(np.float32)
            write(self.folder / "imagesTr" / f"c{case}_0000.nii.gz", image)
            write(self.label(case), blobs(case, shape))
        self.describe()

    def label(self, case):
        return self.folder / "labelsTr" / f"c{case}.nii.gz"

    def describe(self, **change):
        (self.folder / "dataset.json").write_text(json.dumps(DATASET | {"numTraining": 4} | change))


@pytest.fixture
def raw(tmp_path, monkeypatch):
    return Raw(tmp_path, monkeypatch)


def test_labels_that_fit_are_taken(raw):
    check_labels(raw.folder)
    (raw.folder / "labelsTr" / "._c0.nii.gz").write_bytes(b"Mac OS X")
    check_labels(raw.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 3}}, r"`labels` has the values 0, 1, 3; nnU-Net needs consecutive"),
        ({"labels": {"background": 0, "a": "1", "b": 2}}, r"`labels` has '1' for 'a'; expected a whole number"),
        ({"labels": {"background": 0}}, r"names nothing besides background"),
        ({"labels": {"background": 0, "a": 1}}, r"c0\.nii\.gz has the value 2; expected 0, 1: the labels of"),
        ({"channel_names": {"1": "MRI"}}, r"`channel_names` has the keys 1"),
    ],
)
def test_plan_refuses_labels_that_cannot_be_trained_in_one_line(raw, change, message, capsys):
    raw.describe(**change)
    assert main(["plan", "-d", "777", "-tr", "StockTrainer", "-c", "2d"]) == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error)
    assert error.count("\n") == 0
    assert not (raw.preprocessed / "dataset_fingerprint.json").exists()


def test_plan_names_a_float_label_file(raw, capsys):
    write(raw.label(2), blobs(2, (8, 24, 20)) * np.float32(0.99999))
    assert main(["plan", "-d", "777", "-tr", "StockTrainer", "-c", "2d"]) == 2
    assert f"{raw.label(2)} has the values 0.99999, 1.99998; expected 0, 1, 2" in capsys.readouterr().err


def test_flat_axes_are_found():
    assert flat_axis([SHAPE]) is None
    assert flat_axis([(1, 8, 8), (1, 9, 9)]) == 0
    assert flat_axis([(8, 1, 8), (9, 1, 9)]) == 1
    assert flat_axis([(8, 8, 1), (9, 9, 2)]) is None
    assert flat_axis([(1, 1, 9)], preferred=1) == 1
    assert flat_axis([(1, 1, 9)]) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_plan_says_along_which_axis_images_are_flat_and_plans_the_other_two(axis, tmp_path, monkeypatch, capsys):
    shape = [40, 28]
    shape.insert(axis, 1)
    raw = Raw(tmp_path, monkeypatch, tuple(shape))
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * 4,
        "shapes_after_crop": [shape] * 4,
        "foreground_intensity_properties_per_channel": {
            "0": dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
        },
        "median_relative_size_after_cropping": 1.0,
    }
    raw.preprocessed.mkdir(parents=True)
    (raw.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    assert main(["plan", "-d", "777", "-tr", "StockTrainer", "--plans-name", "FlatPlans"]) == 0
    assert f"All images are flat: size 1 along axis {axis} of (0, 1, 2)" in capsys.readouterr().out
    plans = json.loads((raw.preprocessed / "FlatPlans.json").read_text())
    assert list(plans["configurations"]) == ["2d"]
    assert min(plans["configurations"]["2d"]["patch_size"]) >= 28
    assert plans["transpose_forward"][0] == axis
    assert [plans["transpose_forward"][i] for i in plans["transpose_backward"]] == [0, 1, 2]


@pytest.mark.slow
def test_plan_verifies_a_dataset_that_has_no_fingerprint_by_nnunets_own_function(raw, capfd):
    (raw.folder / "imagesTr" / "c3_0000.nii.gz").unlink()
    write(raw.folder / "imagesTr" / "c3_0000.nii.gz", np.ones((8, 24, 21), np.float32))
    assert main(["plan", "-d", "777", "-tr", "StockTrainer", "-c", "2d"]) == 2
    printed = capfd.readouterr()
    assert "Some images have errors" in printed.err
    assert "Shape mismatch between segmentation and corresponding images" in printed.out
    assert not (raw.preprocessed / "dataset_fingerprint.json").exists()
