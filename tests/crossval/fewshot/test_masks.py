"""Masks of several classes in one map, as the comparison reads them."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ext.compare.labels import label_set
from nnunet_ext.compare.metrics import case_scores
from nnunet_ext.crossval.fewshot.cases import coded, coded_dataset, labelled_cases, write_map
from nnunet_ext.crossval.fewshot.segmentation import in_axes
from nnunet_ext.fewshot.baselines import slices_laid_over

NAMES = ["rod", "ball", "cone"]


def test_overlapping_masks_are_scored_as_if_each_were_alone(tmp_path):
    generator = np.random.default_rng(0)
    truth, found = (generator.random((3, 4, 6, 5)) > 0.5 for _ in range(2))
    ignored = generator.random((4, 6, 5)) > 0.9
    reader, properties = SimpleITKIO(), {"spacing": (1.0, 1.0, 1.0)}
    properties["sitk_stuff"] = {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}
    write_map(reader, coded(truth, ignored), tmp_path / "truth.nii.gz", ".nii.gz", properties)
    write_map(reader, coded(found), tmp_path / "found.nii.gz", ".nii.gz", properties)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.nii.gz", "truth.nii.gz"]
    labels = label_set(coded_dataset(NAMES, ".nii.gz", {"0": "MRI"}, ignore=True), tmp_path / "truth.nii.gz")
    assert labels.ignore_label == 8
    maps = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"))) for name in ("truth", "found")]
    scores = case_scores(
        *maps,
        (1, 1, 1),
        labels=labels.labels,
        tolerances=dict.fromkeys(NAMES, 1.0),
        ignore_label=labels.ignore_label,
    )
    for name, a, b in zip(NAMES, truth & ~ignored, found & ~ignored, strict=True):
        assert scores[name]["dice"] == 2 * (a & b).sum() / (a.sum() + b.sum())


def test_a_single_class_is_a_plain_label():
    content = coded_dataset(["rod"], ".png", {"0": "red"}, ignore=False)
    assert content == {"channel_names": {"0": "red"}, "labels": {"background": 0, "rod": 1}, "file_ending": ".png"}
    assert coded(np.array([[[[True, False]]]])).tolist() == [[[1, 0]]]


def test_slices_are_counted_along_the_first_axis_of_the_plans():
    """Plans whose slices run along the last axis of the file."""
    mask = np.zeros((6, 8, 10), bool)
    for k in range(10):
        mask[:3, : 1 + k // 2, k] = True
    axes = [2, 0, 1]
    found = in_axes(slices_laid_over, mask, (6, 8, 9), axes)
    assert np.array_equal(found, slices_laid_over(mask.transpose(2, 0, 1), (9, 6, 8)).transpose(1, 2, 0))
    assert found.shape == (6, 8, 9)


def test_the_classes_of_every_case_are_read_from_its_labels(tmp_path, nnunet):
    cases = labelled_cases(nnunet.raw)
    assert len(cases.scans) == len(cases.truths) == 10
    classes = {"Anterior": (1,), "all": (1, 2)}
    assert set(cases.shown(classes).values()) == {frozenset(classes)}
    case = min(cases.truths)
    masks, found = cases.masks(case, classes)
    truth = sitk.GetArrayFromImage(sitk.ReadImage(str(cases.truths[case])))
    assert np.array_equal(masks, np.stack([truth == 1, truth > 0]))
    assert np.array_equal(found.values, truth)
    with pytest.raises(ValueError, match=r"no case of the dataset has the class 'tail' \(label 7\): leave it out with"):
        cases.shown({"all": (1, 2), "tail": (7,)})
    assert json.loads((nnunet.raw / "dataset.json").read_text())["labels"] == dict(cases.dataset["labels"])
