"""Steps and checks for each feature of nnU-Net, as functions of the lab and a trainer's name."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from nnunet_ext.utils.subprocesses import console_script, is_running, signal_group, start_command
from tests.features.lab import (
    BUDGET,
    ON_CPU,
    PREDICT_ON_CPU,
    TINY,
    Lab,
    check_masks,
    check_training,
    only_scan,
    predictable,
    probabilities,
    read_mask,
)
from tests.features.recorder import write_recorder
from tests.features.workspaces import CASES, FRUGAL, FeatureWorkspace

CELLS: dict[str, Callable[[Lab, str], None]] = {}
_KILL_SECONDS = 300


def cell(name: str) -> Callable[[Callable[[Lab, str], None]], Callable[[Lab, str], None]]:
    """Registers the test of a feature."""

    def register(function: Callable[[Lab, str], None]) -> Callable[[Lab, str], None]:
        CELLS[name] = function
        return function

    return register


@cell("2d")
def two_dimensional(lab: Lab, trainer: str) -> None:
    lab.predict(trainer, configuration="2d_tiny")


@cell("3d_fullres")
def three_dimensional(lab: Lab, trainer: str) -> None:
    lab.predict(trainer)


@cell("cascade")
def cascade(lab: Lab, trainer: str) -> None:
    space = lab.cascade_space()
    first = lab.predict(trainer, "plain", "3d_lowres", fold="all")
    handed_on = space.model(trainer, "3d_lowres").parent / "predicted_next_stage" / "3d_cascade_fullres"
    assert len({file.name.split(".")[0] for file in handed_on.iterdir()}) == CASES
    lab.train(trainer, "plain", "3d_cascade_fullres")

    # One scan under two names, with different labels from the first stage.
    scan, name = only_scan(space)
    folder = lab.root / "cascade" / trainer
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    image = sitk.ReadImage(str(scan))
    labels = read_mask(first / f"{name}.nii.gz")
    for case, given in (("one", labels), ("two", (labels + 1) % 3)):
        mask = sitk.GetImageFromArray(given)
        mask.CopyInformation(image)
        sitk.WriteImage(image, str(folder / "images" / f"{case}_0000.nii.gz"))
        sitk.WriteImage(mask, str(folder / "labels" / f"{case}.nii.gz"))
    options = ("-prev_stage_predictions", str(folder / "labels"))
    arguments = (space, trainer, "3d_cascade_fullres", "0", folder / "images", folder / "out")
    lab.command_predict(*arguments, *options)
    one, two = (probabilities(folder / "out", case) for case in ("one", "two"))
    assert one.shape == two.shape == (3, *labels.shape)
    assert np.abs(one - two).max() > 1e-4
    assert set(np.unique(read_mask(folder / "out" / "one.nii.gz"))) <= {0, 1, 2}


@cell("regions")
def regions(lab: Lab, trainer: str) -> None:
    _check_regions(lab, trainer, "regions")


@cell("ignore")
def ignore(lab: Lab, trainer: str) -> None:
    _check_scores(lab.train(trainer, "ignore"), {"1", "2"})
    lab.predict(trainer, "ignore")


@cell("regions_ignore")
def regions_ignore(lab: Lab, trainer: str) -> None:
    _check_regions(lab, trainer, "regions_ignore")


@cell("two_modalities")
def two_modalities(lab: Lab, trainer: str) -> None:
    folder = lab.predict(trainer, "two_modalities")
    first, other = (scan.name.split("_0000")[0] for scan in lab.space("two_modalities").scans)
    assert np.abs(probabilities(folder, first) - probabilities(folder, other)).max() > 1e-4


@cell("anisotropic")
def anisotropic(lab: Lab, trainer: str) -> None:
    space = lab.space("anisotropic")
    tiny = space.plans["configurations"][TINY]
    assert tiny["spacing"][0] > 2.5 * tiny["spacing"][1]
    assert min(tiny["architecture"]["arch_kwargs"]["kernel_sizes"][0]) == 1
    lab.predict(trainer, "anisotropic")


@cell("nifti")
def nifti(lab: Lab, trainer: str) -> None:
    scan, name = only_scan(lab.space("plain"))
    image = sitk.ReadImage(str(scan))
    assert image.GetDirection()[1] != 0  # turned
    for configuration in (TINY, "2d_tiny"):
        mask = sitk.ReadImage(str(lab.predict(trainer, configuration=configuration) / f"{name}.nii.gz"))
        assert mask.GetSize() == image.GetSize()
        for geometry in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert np.allclose(getattr(mask, geometry)(), getattr(image, geometry)(), atol=1e-5)


@cell("png_rgb")
def png_rgb(lab: Lab, trainer: str) -> None:
    folder = lab.train(trainer, "png_rgb", "2d_tiny")
    assert len(list((folder / "validation").glob("*.png"))) == CASES // 2
    lab.predict(trainer, "png_rgb", "2d_tiny")


@cell("fold_all")
def fold_all(lab: Lab, trainer: str) -> None:
    lab.cascade_space()
    folder = lab.train(trainer, "plain", "3d_lowres", "all")
    assert len(list((folder / "validation").glob("*.nii.gz"))) == CASES
    lab.predict(trainer, "plain", "3d_lowres", fold="all")


@cell("npz_ensemble")
def npz_ensemble(lab: Lab, trainer: str) -> None:
    validation = lab.train(trainer) / "validation"
    cases = [file.stem for file in validation.glob("*.npz")]
    assert len(cases) == CASES // 2
    for case in cases:
        assert np.allclose(probabilities(validation, case).sum(0), 1, atol=1e-2)
    members = [lab.predict(trainer, configuration=c) for c in (TINY, "2d_tiny")]
    out = lab.root / "ensemble" / trainer
    space = lab.space("plain")
    space.run("nnUNetv2_ensemble", "-i", *map(str, members), "-o", str(out), "-np", "1")
    _, name = only_scan(space)
    mean = np.mean([probabilities(member, name) for member in members], 0)
    assert (read_mask(out / f"{name}.nii.gz") == mean.argmax(0)).mean() > 0.999


@cell("find_best")
def find_best(lab: Lab, trainer: str) -> None:
    _best(lab, trainer)


@cell("postprocessing")
def postprocessing(lab: Lab, trainer: str) -> None:
    predicted, information = _best(lab, trainer)
    file = Path(information["best_model_or_ensemble"]["postprocessing_file"])
    written = json.loads(file.with_suffix(".json").read_text())
    space, out = lab.space("plain"), lab.root / "postprocessed" / trainer
    space.run(
        "nnUNetv2_apply_postprocessing",
        *("-i", str(predicted), "-o", str(out), "-pp_pkl_file", str(file), "-np", "1"),
        *("-plans_json", information["best_model_or_ensemble"]["some_plans_file"]),
    )
    _, name = only_scan(space)
    expected = read_mask(predicted / f"{name}.nii.gz")
    assert len(written["postprocessing_fns"]) == len(written["postprocessing_kwargs"])
    for function, arguments in zip(written["postprocessing_fns"], written["postprocessing_kwargs"], strict=True):
        assert function == "remove_all_but_largest_component_from_segmentation"
        expected = _keep_largest(expected, arguments["labels_or_regions"])
    assert np.array_equal(read_mask(out / f"{name}.nii.gz"), expected)


@cell("continue")
def continue_after_kill(lab: Lab, trainer: str) -> None:
    space, results = lab.space("plain"), lab.elsewhere(f"continue_{trainer}", "nnUNet_results")
    folder = space.model(trainer, "2d_tiny").relative_to(space.results.parent)
    folder = Path(results["nnUNet_results"]) / folder
    budget = BUDGET | results | {"NNUNET_EXT_EPOCHS": "3"}
    arguments = (str(space.dataset_id), "2d_tiny", "0", "-tr", trainer, *ON_CPU)
    with (lab.root / f"killed_{trainer}.log").open("w+") as log:
        command = [console_script("nnUNetv2_train"), *arguments]
        process = start_command(command, space.environment | FRUGAL | budget, log, own_group=True)
        _kill_in_second_epoch(process, folder)
    killed = torch.load(folder / "checkpoint_latest.pth", weights_only=False)
    assert killed["current_epoch"] == 1
    assert not (folder / "checkpoint_final.pth").exists()
    printed = space.run("nnUNetv2_train", *arguments, "--c", **budget)
    assert "Epoch 1\n" in printed.replace(" \n", "\n")
    assert "Epoch 0\n" not in printed.replace(" \n", "\n")
    finished = check_training(folder, epochs=3)
    assert finished["logging"]["train_losses"][0] == killed["logging"]["train_losses"][0]


@cell("val")
def val(lab: Lab, trainer: str) -> None:
    folder, space = lab.train(trainer), lab.space("plain")
    masks = {file: read_mask(file) for file in (folder / "validation").glob("*.nii.gz")}
    for file in masks:
        file.unlink()
    lab.command_train(space, trainer, TINY, "0", "--val", "--npz")
    for file, mask in masks.items():
        assert (read_mask(file) == mask).mean() > 0.999
    assert len(masks) == CASES // 2


@cell("val_best")
def val_best(lab: Lab, trainer: str) -> None:
    """The best checkpoint is replaced by another fold's training, so that it is not the final one."""
    space, results = lab.space("plain"), lab.elsewhere(f"val_best_{trainer}", "nnUNet_results")
    final, other = lab.train(trainer), lab.train(trainer, fold="1")
    folder = Path(results["nnUNet_results"]) / final.relative_to(space.results.parent)
    folder.mkdir(parents=True)
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        _link(final.parent / name, folder.parent / name)
    _link(final / "checkpoint_final.pth", folder / "checkpoint_final.pth")
    _link(other / "checkpoint_final.pth", folder / "checkpoint_best.pth")
    lab.command_train(space, trainer, TINY, "0", "--val", "--val_best", "--npz", **results)
    case = sorted(file.stem for file in (folder / "validation").glob("*.npz"))[0]
    images, out = lab.root / "val_best" / trainer / "images", lab.root / "val_best" / trainer / "out"
    images.mkdir(parents=True)
    _link(space.raw / "imagesTr" / f"{case}_0000.nii.gz", images / f"{case}_0000.nii.gz")
    lab.command_predict(space, trainer, TINY, "0", images, out, "-chk", "checkpoint_best.pth", **results)
    validated = probabilities(folder / "validation", case)
    assert np.abs(validated - probabilities(out, case)).max() < 1e-2
    assert np.abs(validated - probabilities(final / "validation", case)).max() > 1e-3


@cell("pretrained")
def pretrained(lab: Lab, trainer: str) -> None:
    """Weights of another dataset, with one more output."""
    weights = lab.train(trainer) / "checkpoint_final.pth"
    space, results = lab.space("regions"), lab.elsewhere(f"pretrained_{trainer}", "nnUNet_results")
    name = write_recorder(lab.root / "recorders" / trainer, trainer)
    trainers = os.pathsep.join((space.environment["nnUNet_extTrainer"], str(lab.root / "recorders" / trainer)))
    lab.command_train(
        space, name, TINY, "0", "-pretrained_weights", str(weights), nnUNet_extTrainer=trainers, **results
    )
    folder = Path(results["nnUNet_results"]) / space.model(name, TINY).relative_to(space.results.parent)
    start = torch.load(folder / "start.pth", weights_only=True)
    given = torch.load(weights, weights_only=False)["network_weights"]
    taken = [key for key in start if ".seg_layers." not in key]
    assert len(taken) > len(start) / 2
    for key in taken:
        assert torch.equal(start[key], given[key]), key
    trained = check_training(folder)["network_weights"]
    assert any(not torch.equal(start[key], trained[key]) for key in taken)


@cell("zip")
def exported(lab: Lab, trainer: str) -> None:
    """The model is installed where nnU-Net's three folders are empty."""
    space, file = lab.space("plain"), lab.root / f"{trainer}.zip"
    original = lab.predict(trainer)
    number = str(space.dataset_id)
    space.run("nnUNetv2_export_model_to_zip", *("-d", number, "-o", str(file), "-c", TINY, "-tr", trainer, "-f", "0"))
    there = lab.elsewhere(f"zip_{trainer}")
    space.run("nnUNetv2_install_pretrained_model_from_zip", str(file), **there)
    out = lab.root / "from_zip" / trainer
    lab.command_predict(space, trainer, TINY, "0", space.raw / "imagesTs", out, **there)
    _same(space, original, out)


@cell("modelfolder")
def modelfolder(lab: Lab, trainer: str) -> None:
    space, out = lab.space("plain"), lab.root / "from_folder" / trainer
    original = lab.predict(trainer)
    space.run(
        "nnUNetv2_predict_from_modelfolder",
        *("-i", str(space.raw / "imagesTs"), "-o", str(out), "-m", str(space.model(trainer, TINY).parent), "-f", "0"),
        *(*PREDICT_ON_CPU, "--save_probabilities"),
    )
    check_masks(space, out)
    _same(space, original, out)


@cell("predictor")
def predictor(lab: Lab, trainer: str) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    space = lab.space("plain")
    scan, name = only_scan(space)
    ours = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False)
    ours.initialize_from_trained_model_folder(str(space.model(trainer, TINY).parent), ("0",))
    image, properties = SimpleITKIO().read_images([str(scan)])
    mask, values = ours.predict_single_npy_array(image, properties, None, None, True)
    folder = lab.predict(trainer)
    assert np.abs(values - probabilities(folder, name)).max() < 1e-3
    assert (mask == read_mask(folder / f"{name}.nii.gz")).mean() > 0.999


@cell("disable_tta")
def disable_tta(lab: Lab, trainer: str) -> None:
    _differs(lab, trainer, "--disable_tta")


@cell("step_size")
def step_size(lab: Lab, trainer: str) -> None:
    _differs(lab, trainer, "-step_size", "1")


def _check_regions(lab: Lab, trainer: str, kind: str) -> None:
    """Among outputs above one half, the last in `regions_class_order` is written."""
    _check_scores(lab.train(trainer, kind), {"(1, 2)", "2"})
    folder, space = lab.predict(trainer, kind), lab.space(kind)
    _, name = only_scan(space)
    values, order = probabilities(folder, name), predictable(space)[0]
    expected = np.zeros(values.shape[1:], int)
    for value, label in zip(values, order, strict=True):
        expected[value > 0.5] = label
    assert (read_mask(folder / f"{name}.nii.gz") == expected).mean() > 0.999


def _check_scores(folder: Path, names: set[str]) -> None:
    """Checks that the validation scored these labels or regions."""
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == names
    assert all(scores["n_ref"] > 0 for scores in summary["mean"].values())


def _best(lab: Lab, trainer: str) -> tuple[Path, dict]:
    """Predictions of the commands that nnUNetv2_find_best_configuration prints, and its own record."""
    space, out = lab.space("plain"), lab.root / "best" / trainer
    for configuration in ("2d_tiny", TINY):
        for fold in ("0", "1"):
            lab.train(trainer, configuration=configuration, fold=fold)
    kept = out / "information.json"
    if kept.is_file():
        return out / "OUTPUT_FOLDER", json.loads(kept.read_text())
    configurations = ("-c", "2d_tiny", TINY)
    options = ("-tr", trainer, "-f", "0", "1", "-np", "1")
    space.run("nnUNetv2_find_best_configuration", str(space.dataset_id), *configurations, *options)
    information = json.loads((space.results / "inference_information.json").read_text())
    assert len(information["all_results"]) == 3
    instructions = (space.results / "inference_instructions.txt").read_text().splitlines()
    out.mkdir(parents=True)
    for line in instructions:
        if not line.startswith(("nnUNetv2_predict", "nnUNetv2_ensemble")):
            continue
        command, *arguments = line.replace("INPUT_FOLDER", str(space.raw / "imagesTs")).split()
        arguments = [str(out / a) if a.startswith("OUTPUT_FOLDER") else a for a in arguments]
        space.run(command, *arguments, *(PREDICT_ON_CPU if command == "nnUNetv2_predict" else ()))
    _, name = only_scan(space)
    assert set(np.unique(read_mask(out / "OUTPUT_FOLDER" / f"{name}.nii.gz"))) <= {0, 1, 2}
    kept.write_text(json.dumps(information))
    return out / "OUTPUT_FOLDER", information


def _keep_largest(mask: np.ndarray, labels: int | list[int]) -> np.ndarray:
    """The mask without voxels of these labels outside their largest component."""
    inside = np.isin(mask, labels)
    parts, count = ndimage.label(inside, np.ones((3, 3, 3)))
    if count < 2:
        return mask
    largest = 1 + np.bincount(parts[inside])[1:].argmax()
    return np.where(inside & (parts != largest), 0, mask)


def _kill_in_second_epoch(process: subprocess.Popen, folder: Path) -> None:
    end = time.monotonic() + _KILL_SECONDS
    try:
        while not any("Epoch 1" in log.read_text() for log in folder.glob("training_log_*.txt")):
            assert time.monotonic() < end, "the second epoch has not begun"
            assert is_running(process.pid), "the training ended before its second epoch"
            time.sleep(0.02)
    finally:
        signal_group(process, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source)


def _same(space: FeatureWorkspace, original: Path, other: Path) -> None:
    _, name = only_scan(space)
    assert np.abs(probabilities(original, name) - probabilities(other, name)).max() < 1e-3
    assert (read_mask(original / f"{name}.nii.gz") == read_mask(other / f"{name}.nii.gz")).mean() > 0.999


def _differs(lab: Lab, trainer: str, *options: str) -> None:
    """Checks that the option changes probabilities."""
    _, name = only_scan(lab.space("plain"))
    usual, changed = lab.predict(trainer), lab.predict(trainer, options=options)
    assert np.abs(probabilities(usual, name) - probabilities(changed, name)).max() > 1e-5
