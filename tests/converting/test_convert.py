"""`nnunet_ext convert` on made-up trees in the layouts of the public data sets."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.cli.main import main
from nnunet_ext.converting.sets import SETS
from nnunet_ext.nnunet.dataset_json import check_consecutive, read_dataset_json
from nnunet_ext.nnunet.groups import groups_from_names
from tests.helpers.label_files import to_image, write
from tests.helpers.public_sets import CHAOS_VALUES, SHAPE, TREES, cmr, label_map, prostate, scan, synapse


def convert(name, source, tmp_path, number=701):
    target = tmp_path / "nnUNet_raw" / f"Dataset{number}_Made"
    return main(["convert", name, str(source), "-o", str(target)]), target


def voxels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def same_geometry(first, second):
    first, second = (sitk.ReadImage(str(path)) for path in (first, second))
    return all(
        np.allclose(getattr(first, f"Get{part}")(), getattr(second, f"Get{part}")())
        for part in ("Size", "Spacing", "Origin", "Direction")
    )


STORED = {
    "synapse-ct": range(1, 14),
    "chaos-mr": CHAOS_VALUES,
    "ms-cmrseg": (200, 500, 600),
    "prostate-mri": range(1, 9),
}
FIRST = {"synapse-ct": "0001", "chaos-mr": "1", "ms-cmrseg": "1", "prostate-mri": "000001"}
TEST = {"synapse-ct": ["synapse_0061"], "chaos-mr": ["chaos_3"], "ms-cmrseg": ["cmr_3"], "prostate-mri": []}


@pytest.mark.parametrize("name", SETS)
def test_voxels_labels_and_geometry(name, tmp_path, capsys):
    code, target = convert(name, TREES[name](tmp_path / "source"), tmp_path)
    assert code == 0
    public = SETS[name]
    first = f"{public.prefix}_{FIRST[name]}"
    assert len(names(target / "imagesTr")) == len(names(target / "labelsTr")) == 2
    np.testing.assert_array_equal(voxels(target / "imagesTr" / f"{first}_0000.nii.gz"), scan(1))
    stored = label_map(STORED[name], 1)
    expected = sum((stored == value) * number for number, value in enumerate(STORED[name], start=1))
    np.testing.assert_array_equal(voxels(target / "labelsTr" / f"{first}.nii.gz"), expected)
    assert same_geometry(target / "imagesTr" / f"{first}_0000.nii.gz", target / "labelsTr" / f"{first}.nii.gz")
    tests = names(target / "imagesTs") if TEST[name] else []
    assert tests == [f"{case}_0000.nii.gz" for case in TEST[name]]
    assert (target / "imagesTs").is_dir() == bool(TEST[name])

    described = read_dataset_json(target / "dataset.json", "channel_names", "numTraining")
    check_consecutive(target / "dataset.json", described)
    assert described["numTraining"] == 2
    assert described["labels"] == public.label_numbers
    assert public.url in described["reference"]
    assert groups_from_names([file.removesuffix(".nii.gz") for file in names(target / "labelsTr")]) is None
    shown = capsys.readouterr().out
    assert f"Wrote 2 labelled cases and {len(TEST[name])} without labels" in shown
    assert f"{2 + len(TEST[name])} of the {public.cases} published cases" in shown
    assert public.licence in shown


def test_the_labels_are_those_of_the_sets_owners():
    """Values and names of the owners' pages, which docs/paper_data.md cites."""
    numbers = {name: public.label_numbers for name, public in SETS.items()}
    organs = [numbers["synapse-ct"][name] for name in ("spleen", "right_kidney", "left_kidney", "liver", "pancreas")]
    assert organs == [1, 2, 3, 6, 11]
    assert len(numbers["synapse-ct"]) == 14
    ranges = SETS["chaos-mr"].values
    assert [(kept.start, kept.stop - 1) for kept in ranges.values()] == [(55, 70), (110, 135), (175, 200), (240, 255)]
    assert list(ranges) == ["liver", "right_kidney", "left_kidney", "spleen"]
    assert {name: kept.start for name, kept in SETS["ms-cmrseg"].values.items()} == {
        "LV_MYO": 200,
        "LV_BP": 500,
        "RV": 600,
    }
    pelvis = [numbers["prostate-mri"][name] for name in ("bladder", "central_gland", "rectum", "neurovascular_bundle")]
    assert pelvis == [1, 5, 6, 8]


def test_the_source_may_be_any_folder_of_the_set(tmp_path):
    raw = synapse(tmp_path / "source")
    for number, source in enumerate((tmp_path, raw, raw / "Training"), start=701):
        code, target = convert("Synapse-CT", source, tmp_path, number)
        assert code == 0
        assert len(names(target / "labelsTr")) == 2


def test_a_map_stored_in_another_order_is_reordered(tmp_path):
    """The label file has its axes swapped and one flipped, in the same space."""
    root = cmr(tmp_path / "source", labelled=1)
    stored = to_image(label_map((200, 500, 600), 1))
    other = sitk.Flip(sitk.PermuteAxes(stored, (1, 0, 2)), (False, True, False))
    sitk.WriteImage(other, str(root / "c0gt" / "patient1_C0_manual.nii.gz"))
    code, target = convert("ms-cmrseg", root, tmp_path)
    assert code == 0
    expected = np.searchsorted((0, 200, 500, 600), label_map((200, 500, 600), 1))
    np.testing.assert_array_equal(voxels(target / "labelsTr" / "cmr_1.nii.gz"), expected)
    assert same_geometry(target / "imagesTr" / "cmr_1_0000.nii.gz", target / "labelsTr" / "cmr_1.nii.gz")


def lose(path):
    return lambda root: (root / path).unlink()


def replace(path, **geometry):
    def change(root):
        values = geometry.pop("values", None)
        write(root / path, label_map(range(1, 14), 1) if values is None else values, **geometry)

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("synapse-ct", lose("Training/label/label0002.nii.gz"), "img0002.nii.gz: images without a label map"),
        ("synapse-ct", lose("Training/img/img0002.nii.gz"), "label0002.nii.gz: label maps without an image"),
        ("prostate-mri", lose("data/000001_mask.nii"), "000001_img.nii: images without a label map, data/N_mask.nii"),
        (
            "synapse-ct",
            replace("Testing/img/img0001.nii.gz"),
            "Testing/img/img0001.nii.gz: test images of cases that are labelled too",
        ),
        ("ms-cmrseg", replace("other/patient1_C0.nii.gz"), "case 1 has several patientN_C0.nii.gz: "),
        ("ms-cmrseg", replace("c0t2lge/patient1_C0.nii"), "case 1 has several patientN_C0.nii.gz: "),
    ],
)
def test_incomplete_trees_are_named_and_nothing_is_written(name, change, message, tmp_path, capsys):
    root = TREES[name](tmp_path / "source")
    change(root)
    code, target = convert(name, root, tmp_path)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_extra_files_are_ignored(tmp_path):
    root = prostate(tmp_path / "source")
    for extra in ("data/._000001_img.nii", "__MACOSX/data/._000001_img.nii", "data/readme.txt", "data/000001_img.png"):
        (root / extra).parent.mkdir(parents=True, exist_ok=True)
        (root / extra).write_text("nothing")
    code, target = convert("prostate-mri", root, tmp_path)
    assert code == 0
    assert names(target / "imagesTr") == ["prostate_000001_0000.nii.gz", "prostate_000002_0000.nii.gz"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            replace("Training/label/label0001.nii.gz", values=label_map((14, 20))),
            "the values 14, 20; expected 0, 1",
        ),
        (replace("Training/label/label0001.nii.gz", origin=(50.0, 0.0, 0.0)), "do not occupy the same space"),
        (replace("Training/label/label0001.nii.gz", values=scan(0, (5, 12, 15))), "size (5, 12, 14) and (5, 12, 15)"),
        (lambda root: (root / "Training/label/label0001.nii.gz").write_bytes(b"x"), "is cut off or damaged"),
        (lambda root: (root / "Training/img/img0001.nii.gz").write_bytes(b"x"), "is cut off or damaged"),
        (replace("Training/img/img0001.nii.gz", values=scan(0, (2, *SHAPE))), "one channel with three dimensions"),
    ],
)
def test_cases_that_cannot_be_converted_are_named(change, reason, tmp_path, capsys):
    root = synapse(tmp_path / "source")
    change(root)
    code, target = convert("synapse-ct", root, tmp_path)
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("synapse_0001: ")
    assert reason in error
    assert "1 of 3 cases cannot be converted; nothing was written" in error
    assert names(target.parent) == []


def test_nothing_is_overwritten(tmp_path, capsys):
    root = synapse(tmp_path / "source")
    other = tmp_path / "nnUNet_raw" / "Dataset701_Other"
    other.mkdir(parents=True)
    code, target = convert("synapse-ct", root, tmp_path)
    assert code == 2
    assert f"the number is taken by {other}; give another" in capsys.readouterr().err
    assert convert("synapse-ct", root, tmp_path, 702)[0] == 0
    before = json.loads((tmp_path / "nnUNet_raw" / "Dataset702_Made" / "dataset.json").read_text())
    assert convert("synapse-ct", root, tmp_path, 702)[0] == 2
    assert json.loads((tmp_path / "nnUNet_raw" / "Dataset702_Made" / "dataset.json").read_text()) == before
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["btcv", "."], "invalid choice: 'btcv'"),
        (["synapse-ct", "nowhere"], "no such folder: nowhere"),
        (["chaos-mr", "."], "has no Train_Sets/MR/N/T2SPIR/DICOM_anon/*.dcm; CHAOS-MRI (T2-SPIR) has "),
        (["synapse-ct", "."], "found: a/patient1_C0.nii.gz"),
        (["ms-cmrseg", "."], "has no patientN_C0_manual.nii.gz; MS-CMRSeg 2019 (bSSFP) has patientN_C0.nii.gz, "),
    ],
)
def test_mistakes_are_answered_at_once(arguments, message, tmp_path):
    write(tmp_path / "a" / "patient1_C0.nii.gz", scan())
    start = time.perf_counter()
    command = [sys.executable, "-m", "nnunet_ext", "convert", *arguments, "-o", "Dataset701_Made"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert time.perf_counter() - start < 5  # about 0.2 s; the libraries that read scans alone take longer
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_name_of_the_dataset_is_checked(tmp_path, capsys):
    assert main(["convert", "synapse-ct", str(synapse(tmp_path)), "-o", str(tmp_path / "Synapse")]) == 2
    assert "must be named DatasetXXX_NAME, for example Dataset701_SynapseCT" in capsys.readouterr().err
