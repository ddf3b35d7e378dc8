"""Runs or compares the README's commands, and the examples."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.pages import README, block, page
from tests.helpers.paths import ROOT
from tests.helpers.shell import bash

BUDGET = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "1", "NNUNET_EXT_VAL_ITERATIONS": "1"}
ON_TWO_PAGES = {
    "nnunet_ext demo": "index",
    "nnUNetv2_train 4": "index",
    "nnunet_ext crossval": "crossval",
    "nnunet_ext compare": "compare",
}


def test_it_is_one_page():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("part", ON_TWO_PAGES)
def test_commands_are_those_of_the_page_that_explains_them(part):
    """They are run from the README, here and in tests/compare/test_report.py."""
    assert block(README, "bash", part) == block(page(ON_TWO_PAGES[part]), "bash", part)


def test_continuous_integration_installs_and_tests_as_contributors_do():
    install, test = block((ROOT / "CONTRIBUTING.md").read_text(), "bash", "[test]").split(" && ")
    script = (ROOT / ".ci" / "run").read_text()
    assert install.removeprefix("pip install ") in script
    assert f"\n{test}\n" in script


def test_the_demo_command_is_the_one_that_is_tested():
    line = block(README, "bash", "nnunet_ext demo")
    assert line == "pip install -e . && nnunet_ext demo"  # test_demo.py runs the second part at its defaults


def test_crossval_command(nnunet, tmp_path):
    line = block(README, "bash", "nnunet_ext crossval")
    printed = bash(f"{line} --device cpu --dry-run", nnunet.environment, tmp_path)
    for trainer in ("nnUNetTrainer", "SASANTrainer", "EMNetTrainer"):
        assert f"nnUNetv2_train 4 3d_fullres 4 -tr {trainer}" in printed


@pytest.mark.slow
def test_nnunet_commands(nnunet, tmp_path):
    """Runs in separate folders, with the smallest budget."""
    script = block(README, "bash", "nnUNetv2_train 4")
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()
    raw = tmp_path / "nnUNet_raw" / nnunet.dataset
    shutil.copytree(nnunet.raw, raw)
    script = script.replace("INPUT", str(raw / "imagesTs")).replace("OUTPUT", str(tmp_path / "out"))
    environment = {k: v for k, v in nnunet.environment.items() if k != "nnUNet_extTrainer"}
    printed = bash(script, environment | folders | BUDGET, tmp_path)
    assert "Everything needed is installed." in printed
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


@pytest.mark.slow
def test_examples(nnunet, tmp_path):
    bash(f"bash '{ROOT}/examples/demo.sh' '{tmp_path}/a b' cpu", nnunet.environment | BUDGET, tmp_path)
    assert len(list((tmp_path / "a b" / "predictions" / "SASANTrainer").glob("*.nii.gz"))) == 4
    model = tmp_path / "a b" / "nnUNet_results" / nnunet.dataset / "SASANTrainer__nnUNetPlans__3d_fullres"
    scan = next((tmp_path / "a b" / "nnUNet_raw" / nnunet.dataset / "imagesTs").iterdir())
    script = f"python '{ROOT}/examples/predict_one_scan.py' '{model}' '{scan}' mask.nii.gz --device cpu"
    bash(script, nnunet.environment, tmp_path)
    compare_masks(tmp_path / "mask.nii.gz", tmp_path / "a b" / "predictions" / "SASANTrainer", scan)


def compare_masks(ours, predictions, scan):
    """Checks that the Python example predicts the same mask as nnUNetv2_predict."""
    import SimpleITK as sitk

    theirs = predictions / scan.name.replace("_0000.nii.gz", ".nii.gz")
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (ours, theirs))
    assert a.shape == b.shape
    assert (a == b).mean() > 0.999
