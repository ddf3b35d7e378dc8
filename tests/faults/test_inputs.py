"""Inputs as people bring them: one row per kind and command. Wrong ones are named, never scored."""

import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_ext.cli.main import main
from nnunet_ext.compare.evaluate import measure
from nnunet_ext.compare.heldout import collect_predictions
from nnunet_ext.nnunet.dataset_json import check_consecutive, read_dataset_json
from nnunet_ext.nnunet.json_files import read_plans, read_splits, read_summary
from nnunet_ext.nnunet.scans import Failure, check_other_folder, scan_of, scans_in
from tests.helpers.label_files import DATASET, SHAPE, HeldOut, blobs, to_image, write

ENDINGS = [".nii.gz", ".nrrd"]


def colours(values):
    return np.stack([40 * values, 90 * values, 0 * values], -1).astype(np.uint8)


def palette(path, values):
    image = Image.fromarray(values, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(path)


def moved(path, values):
    write(path, values, origin=(5.0, -3.0, 17.0))


def without_spacing(path, values):
    write(path, values, spacing=(1.0, 1.0, 1.0))


def vectors(path, values):
    image = sitk.GetImageFromArray(colours(values), isVector=True)
    image.CopyInformation(to_image(values))
    sitk.WriteImage(image, str(path))


MASKS = {
    "0 and 255": (".nii.gz", lambda path, v: write(path, 255 * (v > 0).astype(np.uint8)), r"has the value 255; "),
    "4 for 2": (".nii.gz", lambda path, v: write(path, np.where(v == 2, 4, v)), r"has the value 4; "),
    "negative": (".nii.gz", lambda path, v: write(path, v.astype(np.int16) - 1), r"has the value -1; "),
    "float": (".nii.gz", lambda path, v: write(path, v * np.float32(0.99999)), r"has the values 0\.99999, 1\.99998; "),
    "NaN": (".nrrd", lambda path, v: write(path, np.where(v == 2, np.float32("nan"), v)), r"has the values nan; "),
    "moved": (".nii.gz", moved, r"differ in origin .*: they do not occupy the same space"),
    "no spacing": (".nii.gz", without_spacing, r"differ in spacing .*: they do not occupy the same space"),
    "cropped": (".nii.gz", lambda path, v: write(path, v[1:]), r"differ in size \([56], 8, 10\) and \([56], 8, 10\)"),
    "vectors": (".nrrd", vectors, r"has 3 channels, a label map has one"),
    "two time points": (
        ".nii.gz",
        lambda path, v: sitk.WriteImage(sitk.JoinSeries([to_image(v), to_image(v)]), str(path)),
        r"has 2 channels, a label map has one",
    ),
    "colours": (".png", lambda path, v: write(path, colours(v)), r"has 3 channels, a label map has one"),
    "RGBA": (
        ".png",
        lambda path, v: write(path, np.concatenate([colours(v), np.full((*v.shape, 1), 255, np.uint8)], -1)),
        r"has 4 channels, a label map has one",
    ),
    "palette": (".png", palette, r"has 3 channels, a label map has one"),
}


@pytest.mark.parametrize("folder", ["labels", "A"])
@pytest.mark.parametrize("kind", MASKS)
def test_compare_names_a_wrong_label_map_and_writes_no_report(kind, folder, tmp_path, capsys):
    ending, change, message = MASKS[kind]
    held_out = HeldOut(tmp_path, ending, SHAPE[1:] if ending == ".png" else SHAPE)
    change(held_out.file(folder, 1), blobs(1, SHAPE[1:] if ending == ".png" else SHAPE))
    assert main(held_out.call) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert str(held_out.file(folder, 1)) in error
    if "has the value" in message:
        assert "; expected 0, 1, 2: the labels of dataset.json" in error
    assert not (tmp_path / "report" / "report.html").exists()


TAKEN = {
    "float with whole values": lambda path, v: write(path, v.astype(np.float32)),
    "int64": lambda path, v: write(path, v.astype(np.int64)),
    "uint16": lambda path, v: write(path, v.astype(np.uint16)),
    "flipped": lambda path, v: sitk.WriteImage(sitk.Flip(to_image(v), [True, False, True]), str(path)),
    "permuted": lambda path, v: sitk.WriteImage(sitk.PermuteAxes(to_image(v), [2, 0, 1]), str(path)),
    "one time point": lambda path, v: sitk.WriteImage(sitk.JoinSeries([to_image(v)]), str(path)),
    "rounded origin": lambda path, v: write(path, v, origin=(5.004, -3.0, 7.0)),
}


def held_out_scores(held_out):
    study = collect_predictions([f"{name}={held_out.root / name}" for name in "AB"], held_out.root / "labels")
    return measure(study, dict.fromkeys(study.labels.labels, 2.0), held_out.root / "cache", 1)


@pytest.mark.parametrize("folder", ["labels", "A"])
@pytest.mark.parametrize("kind", TAKEN)
def test_compare_gives_the_same_scores_for_other_ways_to_store_a_map(kind, folder, tmp_path):
    held_out = HeldOut(tmp_path)
    before = held_out_scores(held_out)
    TAKEN[kind](held_out.file(folder, 1), blobs(1 if folder == "labels" else 11))
    after = held_out_scores(held_out)
    columns = list(before.columns[5:])
    np.testing.assert_allclose(after[columns].to_numpy(float), before[columns].to_numpy(float), rtol=1e-6)


def test_compare_ignores_hidden_files_and_follows_links(tmp_path):
    held_out = HeldOut(tmp_path / "real")
    before = held_out_scores(held_out)
    for name in ("labels", "A", "B"):
        (held_out.root / name / "._case0.nii.gz").write_bytes(b"Mac OS X")
        (held_out.root / name / "Thumbs.db").write_bytes(b"thumbs")
    (tmp_path / "link").symlink_to(held_out.root, target_is_directory=True)
    linked = HeldOut.__new__(HeldOut)
    linked.root = tmp_path / "link"
    assert held_out_scores(linked).equals(before)


def test_a_shift_within_half_a_voxel_is_noted(tmp_path, capsys):
    held_out = HeldOut(tmp_path)
    before = held_out_scores(held_out)
    write(held_out.file("A"), blobs(10), origin=(5.2, -3.0, 7.0))
    assert held_out_scores(held_out).equals(before)
    note = f"Note: {held_out.file('A')} lies 0.2 voxels off {held_out.file('labels')}; nothing was resampled."
    assert note in capsys.readouterr().err


LABELS = DATASET["labels"]
DATASETS = {
    "labels missing": ({"labels": None}, r"has no `labels`; expected, for example, \{\"background\": 0"),
    "file_ending missing": ({"file_ending": None}, r"has no `file_ending`; expected, for example, \"\.nii\.gz\""),
    "file_ending without dot": ({"file_ending": "nii.gz"}, r"`file_ending` is 'nii\.gz'; expected, for example"),
    "channel_names missing": ({"channel_names": None}, r"has no `channel_names`; expected"),
    "version-1 channels": (
        {"channel_names": None, "modality": {"0": "CT"}},
        r"has no `channel_names` \(it has `modality`, the key's name in version 1\)",
    ),
    "channels as list": ({"channel_names": ["CT"]}, r"`channel_names` is \['CT'\]; expected, for example"),
    "channels from 1": ({"channel_names": {"1": "CT"}}, r"`channel_names` has the keys 1; expected .* 0$"),
    "version-1 labels": (
        {"labels": {"0": "background", "1": "liver"}},
        r"form of nnU-Net version 1; version 2 expects \{\"background\": 0, \"liver\": 1\}",
    ),
    "labels as list": ({"labels": ["background", "liver"]}, r"`labels` is \['background', 'liver'\]; expected"),
    "text": ({"labels": LABELS | {"first": "1"}}, r"`labels` has '1' for 'first'; expected a whole number without"),
    "float": ({"labels": LABELS | {"first": 1.0}}, r"`labels` has 1\.0 for 'first'; expected a whole number"),
    "no background": ({"labels": {"first": 1}}, r"`labels` must have \"background\": 0"),
    "ignore in between": ({"labels": LABELS | {"ignore": 1}}, r"the ignore label must be the highest value, 3, not 1"),
    "regions without order": (
        {"labels": {"background": 0, "whole": [1, 2], "core": 2}},
        r"regions need `regions_class_order`, .* each of whole, core; found none",
    ),
    "too short an order": (
        {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1]},
        r"regions need `regions_class_order`, .* found \[1\]",
    ),
    "numTraining as text": ({"numTraining": "20"}, r"`numTraining` is '20'; expected, for example, 20"),
}


def described(**change):
    return {key: value for key, value in (DATASET | change).items() if value is not None}


@pytest.mark.parametrize("kind", DATASETS)
def test_a_dataset_json_is_refused_in_one_line_with_file_key_and_what_is_expected(kind, tmp_path):
    change, message = DATASETS[kind]
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(described(**change)))
    with pytest.raises(ValueError, match=message) as error:
        read_dataset_json(file, "channel_names")
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_datasets_that_nnunet_takes_are_taken(tmp_path):
    file = tmp_path / "dataset.json"
    for change in (
        {},
        {"labels": LABELS | {"ignore": 3}},
        {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]},
        {"channel_names": {"0": "T1", "1": "T2"}},
    ):
        file.write_text(json.dumps(described(**change), indent=2).replace("\n", "\r\n"), newline="")
        assert b"\r\n" in file.read_bytes()
        content = read_dataset_json(file, "channel_names")
        assert content == described(**change)
        check_consecutive(file, content)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "a": 1, "b": 3}, r"has the values 0, 1, 3; nnU-Net needs consecutive ones, 0, 1, 2"),
        ({"background": 0, "a": 2}, r"has the values 0, 2; nnU-Net needs consecutive ones, 0, 1"),
        ({"background": 0}, r"names nothing besides background"),
        ({"background": 0, "ignore": 1}, r"names nothing besides background"),
    ],
)
def test_labels_that_cannot_be_trained_are_refused(labels, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        check_consecutive(tmp_path / "dataset.json", described(labels=labels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"labels": {"background": 0},}', "is cut off or not valid JSON .*line 1 column"),
        ("[1, 2]", "must be a JSON object .* not a list"),
        ("", "is cut off or not valid JSON"),
        ("\ufeff{}", "is cut off or not valid JSON .*BOM"),
    ],
)
@pytest.mark.parametrize("read", [read_dataset_json, read_plans, read_summary, read_splits])
def test_every_json_file_is_named(read, text, message, tmp_path):
    file = tmp_path / "some.json"
    file.write_text(text, encoding="utf-8")
    if read is read_splits and text.startswith("["):
        message = "must be a list with one"
    with pytest.raises(ValueError, match=message) as error:
        read(file)
    assert str(error.value).startswith(str(file))
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"no such file: {file}"):
        read(file)


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_plans, {"plans_name": "nnUNetPlans"}, "`configurations` is missing or of the wrong type"),
        (read_summary, {"metric_per_case": [{"metrics": {}}]}, "must have `prediction_file` and `metrics`"),
        (read_splits, [{"train": ["a"]}], "must be a list with one"),
    ],
)
def test_json_files_of_another_kind_are_named(read, content, message, tmp_path):
    file = tmp_path / "some.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read(file)


@pytest.mark.parametrize("kind", ["a trailing comma", "text", "labels as list"])
@pytest.mark.parametrize("command", ["compare", "fewshot", "predict", "networks"])
def test_commands_end_in_one_line_and_code_2(kind, command, tmp_path, capsys, make_model, nnunet, monkeypatch):
    text = json.dumps(described(**DATASETS.get(kind, ({},))[0]))
    text = text[:-1] + ",}" if kind == "a trailing comma" else text
    if command == "compare":
        held_out = HeldOut(tmp_path)
        file, call = tmp_path / "A" / "dataset.json", held_out.call
    else:
        model = make_model("FAFNetFewShotTrainer")
        file = model / "dataset.json"
        folders = ("-i", str(nnunet.raw / "imagesTs"), "-o", str(tmp_path / "out"))
        results = tmp_path / "results" / nnunet.dataset
        shutil.copytree(model, results / "FAFNetFewShotTrainer__nnUNetPlans__3d_fullres_tiny")
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        image, mask = (sorted((nnunet.raw / folder).iterdir())[0] for folder in ("imagesTr", "labelsTr"))
        support = ("--support", str(image), "--mask", str(mask), "--label", "1")
        call = {
            "fewshot": ["fewshot", "--model", str(model), *support, *folders],
            "predict": ["predict", "-d", "4", "-c", "3d_fullres_tiny", "-tr", "FAFNetFewShotTrainer", *folders],
            "networks": ["networks", "--plans", str(model / "plans.json"), "--configuration", "3d_fullres_tiny"],
        }[command]
        if command == "predict":
            file = results / "FAFNetFewShotTrainer__nnUNetPlans__3d_fullres_tiny" / "dataset.json"
    file.write_text(text)
    assert main(call) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"nnunet_ext {command}: {file}")
    assert error.count("\n") == 0


def lay_out(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


SCANS = {
    "a mask beside its scan": (
        ("a_0000.nii.gz", "a.nii.gz"),
        ["a"],
        [
            Failure(
                "a.nii.gz",
                "has no channel number and stands beside the scan a_0000; a scan's file is named a_0000.nii.gz",
            )
        ],
    ),
    "two years": (
        ("pat_2019.nii.gz", "pat_2020.nii.gz"),
        [],
        [
            Failure(
                "pat",
                "has the channels 2019, 2020; channels are numbered 0000, 0001, .. without gaps; scans whose names end "
                "in a number, a year for instance, are named pat_2019_0000.nii.gz, pat_2020_0000.nii.gz",
            )
        ],
    ),
    "a gap": (
        ("a_0000.nii.gz", "a_0002.nii.gz", "b_0000.nii.gz"),
        ["b"],
        [Failure("a", "has the channels 0000, 0002; channels are numbered 0000, 0001, .. without gaps")],
    ),
    "two formats": (
        ("a_0000.nii.gz", "a_0000.nrrd", "b_0000.nrrd"),
        ["b"],
        [Failure("a", "exists in several formats, .nii.gz, .nrrd: remove all but one")],
    ),
    "hidden files": (("a_0000.nii.gz", "._a_0000.nii.gz", ".b_0000.nii.gz", "Thumbs.db", ".DS_Store"), ["a"], []),
    "two channels": (("a_0001.nii.gz", "a_0000.nii.gz"), ["a"], []),
}


@pytest.mark.parametrize("kind", SCANS)
def test_what_is_a_scan(kind, tmp_path):
    names, cases, expected = SCANS[kind]
    scans, failures = scans_in(lay_out(tmp_path, *names), ENDINGS)
    assert [scan.case for scan in scans] == cases
    assert failures == expected


def test_hidden_files_alone_are_no_scans(tmp_path):
    with pytest.raises(ValueError, match=r"has no scan: no file that ends with \.nii\.gz"):
        scans_in(lay_out(tmp_path, "._a_0000.nii.gz"), ENDINGS)


def test_a_support_scan_with_a_gap_in_its_channels_is_refused(tmp_path):
    lay_out(tmp_path, "a_0000.nii.gz", "a_0002.nii.gz")
    with pytest.raises(ValueError, match="has the channels 0000, 0002; channels are numbered"):
        scan_of(tmp_path / "a_0000.nii.gz", ENDINGS)


def test_the_input_folder_is_no_output_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for target in (tmp_path, tmp_path / "link", tmp_path / "x" / ".."):
        with pytest.raises(ValueError, match="is the input folder"):
            check_other_folder(target, tmp_path)
    check_other_folder(tmp_path / "masks", tmp_path)


@pytest.mark.parametrize("command", ["predict", "fewshot"])
def test_commands_refuse_to_write_among_the_scans(command, tmp_path, capsys):
    (tmp_path / "m.nii.gz").touch()
    options = {
        "predict": ("-d", "4", "-c", "2d", "-device", "cpu"),
        "fewshot": (*("--model", "m", "--support", "a.nii.gz", "--label", "1"), "--mask", str(tmp_path / "m.nii.gz")),
    }[command]
    assert main([command, "-i", str(tmp_path), "-o", str(tmp_path), *options]) == 2
    assert f"the output folder {tmp_path} is the input folder" in capsys.readouterr().err
