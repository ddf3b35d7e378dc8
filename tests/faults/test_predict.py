"""`nnunet_ext predict`, and nnU-Net's own prediction, on folders with bad scans among good ones."""

import argparse
import contextlib
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.cli import predict
from nnunet_ext.cli.main import main
from nnunet_ext.nnunet.scans import scans_in
from nnunet_ext.predict import CheckedScans, PredictionTask, part_of, problem
from nnunet_ext.utils.subprocesses import console_script

FAST = ("-npp", "1", "-nps", "1", "--disable_tta", "-device", "cpu")
OPTIONS = ("-d", "4", "-c", "3d_fullres_tiny", "-tr", "SASANTrainer", "-f", "0", *FAST)


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def write_like(path, array, template):
    image = sitk.GetImageFromArray(array)
    if image.GetSize() == template.GetSize():
        image.CopyInformation(template)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def good(nnunet):
    return sorted((nnunet.raw / "imagesTr").iterdir())[:3]


@pytest.fixture
def scans(good, tmp_path):
    """Good scans, odd ones that can be predicted, and bad ones; the names of their folder are odd as well."""
    folder = tmp_path / "-x y" / "ü"
    folder.mkdir(parents=True)
    for number, path in enumerate(good):
        shutil.copy(path, folder / f"good {number}_0000.nii.gz")
    template = sitk.ReadImage(str(good[0]))
    image = sitk.GetArrayFromImage(template).astype(np.float32)
    write_like(folder / "constant_0000.nii.gz", np.full_like(image, 7), template)
    write_like(folder / "tiny_0000.nii.gz", image[:5, :4, :3], template)
    whole = good[1].read_bytes()
    (folder / "cut off_0000.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "text_0000.nii.gz").write_text("no scan")
    (folder / "empty_0000.nii.gz").touch()
    for channel in (0, 1):
        shutil.copy(good[2], folder / f"double_000{channel}.nii.gz")
    return folder


GOOD = ["constant", "good 0", "good 1", "good 2", "tiny"]
BAD = {
    "cut off": "{folder}/cut off_0000.nii.gz is cut off or damaged: Compressed file ended before the end",
    "double": "2 channel(s), the model has 1",
    "empty": "Exception thrown in SimpleITK",
    "text": "{folder}/text_0000.nii.gz is cut off or damaged: Not a gzipped file",
}


def sorted_out(folder, channels=1, ending=".nii.gz", **task):
    """Scans that can be predicted, and the reasons why the others cannot."""
    scans, task = scans_in(folder, [ending])[0], PredictionTask(folder, ending, **task)
    problems = {scan: problem(scan, SimpleITKIO(), channels, task) for scan in scans}
    return [scan for scan in scans if problems[scan] is None], [found for found in problems.values() if found]


def test_scans_are_checked_while_others_are_predicted(nnunet, good, tmp_path):
    """A scan that is damaged once the first is ready is noticed: scans are read only when their turn comes."""
    for path in good:
        shutil.copy(path, tmp_path)
    scans, _ = scans_in(tmp_path, [".nii.gz"])
    plans = PlansManager(nnunet.plans)
    predictor = SimpleNamespace(
        plans_manager=plans,
        configuration_manager=plans.get_configuration("3d_fullres_tiny"),
        dataset_json=nnunet.dataset_json,
        _internal_get_data_iterator_from_lists_of_filenames=None,
    )
    checked = CheckedScans(PredictionTask(tmp_path / "masks", ".nii.gz"), SimpleITKIO, 1, processes=1)
    checked.attach(predictor, scans)
    targets = [str(tmp_path / "masks" / scan.case) for scan in scans]
    iterate = predictor._internal_get_data_iterator_from_lists_of_filenames
    iterator = iterate([list(scan.files) for scan in scans], None, targets, 1)
    first = next(iterator)
    assert (first["ofile"], first["data"].shape[0]) == (targets[0], 1)
    Path(scans[2].files[0]).write_text("no scan")
    assert [item["ofile"] for item in iterator] == [targets[1]]
    assert checked.ready == 2
    assert [failure.case for failure in checked.failures] == [scans[2].case]
    assert "is cut off or damaged" in checked.failures[0].reason


def test_what_cannot_be_predicted_is_sorted_out(scans):
    found, failures = sorted_out(scans)
    assert [scan.case for scan in found] == GOOD
    assert [failure.case for failure in failures] == list(BAD)
    for failure in failures:
        assert failure.reason.startswith(BAD[failure.case].format(folder=scans))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_sorted_out(good, tmp_path, value):
    """SimpleITK keeps them in .nrrd files; in NIfTI files it reads 0."""
    template = sitk.ReadImage(str(good[0]))
    image = sitk.GetArrayFromImage(template).astype(np.float32)
    for ending in (".nrrd", ".nii.gz"):
        write_like(tmp_path / f"good_0000{ending}", image, template)
        wrong = image.copy()
        wrong[3, 4, 5:7] = value
        write_like(tmp_path / f"wrong_0000{ending}", wrong, template)
    found, failures = sorted_out(tmp_path, ending=".nrrd")
    assert [scan.case for scan in found] == ["good"]
    assert [failure.reason for failure in failures] == ["wrong_0000.nrrd: 2 NaN or infinite voxels"]
    assert [scan.case for scan in sorted_out(tmp_path)[0]] == ["good", "wrong"]


def test_channels_of_another_geometry_are_sorted_out(good, tmp_path):
    image = sitk.ReadImage(str(good[0]))

    def add(case, change):
        shutil.copy(good[0], tmp_path / f"{case}_0000.nii.gz")
        sitk.WriteImage(change(sitk.Image(image)), str(tmp_path / f"{case}_0001.nii.gz"))

    def moved(second):
        second.SetOrigin((1, 2, 3))
        return second

    def turned(second):
        second.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
        return second

    def stretched(second):
        second.SetSpacing((1, 1, 2))
        return second

    add("same", lambda second: second)
    add("moved", moved)
    add("turned", turned)
    add("stretched", stretched)
    add("cropped", lambda second: second[:-1])
    found, failures = sorted_out(tmp_path, channels=2)
    assert [scan.case for scan in found] == ["same"]
    reasons = {failure.case: failure.reason for failure in failures}
    assert "same_0000.nii.gz" not in str(reasons)
    assert reasons["moved"].startswith(
        "moved_0000.nii.gz and moved_0001.nii.gz differ in origin [-1.0, -1.0, 1.0] and [1.0, 2.0, 3.0]"
    )
    assert "differ in direction" in reasons["turned"]
    assert "differ in spacing" in reasons["stretched"]
    assert "differ in size (" in reasons["cropped"]


def test_a_missing_mask_of_the_previous_stage_is_sorted_out(good, tmp_path):
    for path in good[:2]:
        shutil.copy(path, tmp_path)
    previous = tmp_path / "previous"
    previous.mkdir()
    label = good[0].name.replace("_0000", "")
    shutil.copy(good[0].parent.parent / "labelsTr" / label, previous / label)
    found, failures = sorted_out(tmp_path, previous=previous)
    assert [scan.case for scan in found] == [good[0].name.removesuffix("_0000.nii.gz")]
    assert failures[0].reason == f"no mask of the previous stage in {previous}"


def test_a_mask_of_the_previous_stage_with_other_labels_or_elsewhere_is_sorted_out(good, tmp_path):
    previous = tmp_path / "previous"
    previous.mkdir()
    for number, path in enumerate(good):
        shutil.copy(path, tmp_path)
        label = path.name.replace("_0000", "")
        mask = sitk.ReadImage(str(path.parent.parent / "labelsTr" / label))
        changed = [mask, sitk.ChangeLabel(mask, {2: 7}), sitk.Flip(mask, [True, False, False])][number]
        sitk.WriteImage(changed, str(previous / label))
    found, failures = sorted_out(tmp_path, previous=previous, labels=frozenset({0, 1, 2}))
    assert [f"{scan.case}_0000.nii.gz" for scan in found] == [good[0].name]
    assert "has the value 7; expected 0, 1, 2: the labels of dataset.json" in failures[0].reason
    assert "differ in direction" in failures[1].reason


def test_channels_a_few_micrometres_apart_are_predicted_and_those_further_noted(good, tmp_path, capsys):
    image = sitk.ReadImage(str(good[0]))
    for case, shift in (("near", 0.005), ("off", 0.3), ("apart", 0.6)):
        shutil.copy(good[0], tmp_path / f"{case}_0000.nii.gz")
        moved = sitk.Image(image)
        moved.SetOrigin([x + shift for x in image.GetOrigin()])
        sitk.WriteImage(moved, str(tmp_path / f"{case}_0001.nii.gz"))
    found, failures = sorted_out(tmp_path, channels=2)
    assert [scan.case for scan in found] == ["near", "off"]
    assert [failure.case for failure in failures] == ["apart"]
    notes = capsys.readouterr().err.splitlines()
    assert notes == ["Note: off_0001.nii.gz lies 0.3 voxels off off_0000.nii.gz; nothing was resampled."]


def test_parts_are_nnunets(good):
    scans = list("abcdefg")
    assert [part_of(scans, number, 3) for number in range(3)] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    with pytest.raises(ValueError, match="-part_id 3 must be one of 0 to 2, as -num_parts is 3"):
        part_of(scans, 3, 3)


def test_half_a_mask_is_not_done(good, tmp_path):
    (scan,) = scans_in(good[0].parent, [".nii.gz"])[0][:1]
    task = PredictionTask(tmp_path, ".nii.gz")
    reader = SimpleITKIO()
    assert not task.is_done(reader, scan)
    shutil.copy(good[0], task.mask(scan))
    assert task.is_done(reader, scan)
    assert not PredictionTask(tmp_path, ".nii.gz", probabilities=True).is_done(reader, scan)
    np.savez(tmp_path / f"{scan.case}.npz", probabilities=np.zeros(3))
    (tmp_path / f"{scan.case}.pkl").touch()
    assert PredictionTask(tmp_path, ".nii.gz", probabilities=True).is_done(reader, scan)
    for file in (tmp_path / f"{scan.case}.npz", task.mask(scan)):
        file.write_bytes(file.read_bytes()[:-100])
        assert not PredictionTask(tmp_path, ".nii.gz", probabilities=True).is_done(reader, scan)
    assert not task.is_done(reader, scan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-step_size", "0"), "-step_size 0 must be above 0"),
        (("-npp", "0"), "-npp 0 must be at least 1"),
        (("-d", "99"), "-d 99: Could not find a dataset with the ID 99"),
        (("-tr", "EMNetCTrainer"), "is not a folder of a trained model"),
        (("--model", "somewhere"), "--model names the model already; leave out -d, -c, -tr"),
    ],
)
def test_mistakes_are_said(nnunet_environment, tmp_path, capsys, options, message):
    call = ["predict", "-i", str(tmp_path), "-o", str(tmp_path / "out"), *OPTIONS, *options]
    assert main(call) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_is_named_in_one_of_two_ways(nnunet_environment, tmp_path, capsys):
    scans = ["predict", "-i", str(tmp_path), "-o", str(tmp_path / "out"), "-device", "cpu"]
    assert main([*scans, "-d", "4"]) == 2
    assert "-c missing: the model is named by -d, -c, -tr and -p, or by --model" in capsys.readouterr().err
    assert main([*scans, "--model", str(tmp_path)]) == 2
    assert f"{tmp_path} is not a folder of a trained model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_named_by_its_folder(nnunet, model, good, tmp_path):
    """As from the dataset's number, wherever the folder is: a container has no results folder."""
    folder = Path(shutil.copytree(model, tmp_path / "a model"))
    scans = tmp_path / "scans"
    scans.mkdir()
    shutil.copy(good[0], scans / "case_0000.nii.gz")
    for target, options in (("named", OPTIONS), ("found", ("--model", str(folder), "-f", "0", *FAST))):
        nnunet.run("nnunet_ext", "predict", "-i", str(scans), "-o", str(tmp_path / target), *options)
    assert (read(tmp_path / "named" / "case.nii.gz") == read(tmp_path / "found" / "case.nii.gz")).all()


def check_masks(folder, scans, cases):
    assert sorted(path.name for path in folder.glob("*.nii.gz")) == [f"{case}.nii.gz" for case in cases]
    for case in cases:
        mask, scan = (sitk.ReadImage(str(p)) for p in (folder / f"{case}.nii.gz", scans / f"{case}_0000.nii.gz"))
        assert mask.GetSize() == scan.GetSize()
        assert mask.GetSpacing() == pytest.approx(scan.GetSpacing())
        assert set(np.unique(sitk.GetArrayFromImage(mask))) <= {0, 1, 2}


def test_it_has_every_option_of_nnunets_command(monkeypatch):
    """Also those for the numbers of processes in the environment."""
    monkeypatch.setenv("nnUNet_nps", "1")
    theirs = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda parser: theirs.append(parser) or exit())
    with pytest.raises(SystemExit):
        predict_entry_point()
    ours = argparse.ArgumentParser()
    predict.add_arguments(ours)
    options = [{o for action in parser._actions for o in action.option_strings} for parser in (*theirs, ours)]
    assert len(options[0]) > 15
    assert options[0] <= options[1]
    arguments, _ = ours.parse_known_args(["-i", "IN", "-o", "OUT", "-d", "4", "-c", "2d"])
    assert (arguments.npp, arguments.nps) == (3, 1)


@pytest.mark.slow
def test_bad_scans_do_not_stop_the_good_ones(nnunet, model, scans):
    """A volume smaller than the patch and a constant one are predicted; failures are reported, with exit code 1."""
    output = scans.parent / "-masks"
    done = nnunet.attempt("nnunet_ext", "predict", "-i", str(scans), "-o", str(output), *OPTIONS)
    assert done.returncode == 1, done.stdout[-3000:]
    assert "Wrote 5 of 9 masks" in done.stdout
    for case, reason in BAD.items():
        assert f"\n{case}: {reason.format(folder=scans)}" in done.stdout
    check_masks(output, scans, GOOD)


@pytest.mark.slow
@pytest.mark.long
def test_it_predicts_as_nnunet_does_and_goes_on_with_half_a_mask(nnunet, model, scans, tmp_path):
    for case in BAD:
        for file in scans.glob(f"{case}_*"):
            file.unlink()
    nnunet.run("nnUNetv2_predict", "-i", str(scans), "-o", str(tmp_path / "theirs"), *OPTIONS)
    call = ("predict", "-i", str(scans), "-o", str(tmp_path / "ours"), *OPTIONS)
    nnunet.run("nnunet_ext", *call, "-num_parts", "2", "-part_id", "0")
    check_masks(tmp_path / "ours", scans, GOOD[::2])
    half = tmp_path / "ours" / f"{GOOD[2]}.nii.gz"
    half.write_bytes(half.read_bytes()[:200])
    before = (tmp_path / "ours" / f"{GOOD[0]}.nii.gz").stat().st_mtime_ns
    printed = nnunet.run("nnunet_ext", *call, "--continue_prediction")
    assert "Wrote 3 of 3 masks" in printed
    assert (tmp_path / "ours" / f"{GOOD[0]}.nii.gz").stat().st_mtime_ns == before
    check_masks(tmp_path / "ours", scans, GOOD)
    for case in GOOD:
        assert (read(tmp_path / "ours" / f"{case}.nii.gz") == read(tmp_path / "theirs" / f"{case}.nii.gz")).all()


@pytest.mark.slow
@pytest.mark.long
def test_nnunets_own_prediction_says_nothing_of_half_a_scan_and_ends_at_one_that_it_cannot_read(
    nnunet, model, scans, tmp_path
):
    """The reason for our own command."""
    for case in ("double", "empty", "text"):
        for file in scans.glob(f"{case}_*"):
            file.rename(tmp_path / file.name)
    nnunet.run("nnUNetv2_predict", "-i", str(scans), "-o", str(tmp_path / "masks"), *OPTIONS)
    assert (tmp_path / "masks" / "cut off.nii.gz").is_file()
    (tmp_path / "text_0000.nii.gz").rename(scans / "a text_0000.nii.gz")
    done = nnunet.attempt("nnUNetv2_predict", "-i", str(scans), "-o", str(tmp_path / "others"), *OPTIONS)
    assert done.returncode != 0
    assert "Background workers died" in done.stdout
    assert list((tmp_path / "others").glob("*.nii.gz")) == []


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_share_a_folder(nnunet, model, tmp_path):
    """nnU-Net's own command, both at once; the masks are those of a single process."""
    single, shared = tmp_path / "single", tmp_path / "shared"
    images = nnunet.raw / "imagesTr"
    nnunet.run("nnUNetv2_predict", "-i", str(images), "-o", str(single), *OPTIONS)
    command = (console_script("nnUNetv2_predict"), "-i", str(images), "-o", str(shared), *OPTIONS, "-num_parts", "2")
    with contextlib.ExitStack() as stack:
        parts = [
            subprocess.Popen(
                [*command, "-part_id", str(number)],
                env=nnunet.environment,
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context((tmp_path / f"{number}.txt").open("w")),
                stderr=subprocess.STDOUT,
            )
            for number in range(2)
        ]
        assert [part.wait(600) for part in parts] == [0, 0]
    names = sorted(path.name for path in single.glob("*.nii.gz"))
    assert len(names) == 10
    assert sorted(path.name for path in shared.glob("*.nii.gz")) == names
    printed = [(tmp_path / f"{number}.txt").read_text() for number in range(2)]
    predicted = [text.count("\nPredicting ") for text in printed]
    assert predicted == [5, 5]
    for name in names:
        assert (read(single / name) == read(shared / name)).all()
