"""Runs or compares the README's commands, snippets and table, and the examples."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.shell import bash

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BUDGET = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "1", "NNUNET_EXT_VAL_ITERATIONS": "1"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_python_snippets_run():
    assert blocks("python")
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), {})


def test_continuous_integration_installs_and_tests_as_the_readme_says():
    (line,) = [block.strip() for block in blocks("bash") if "[test]" in block]
    install, test = line.split(" && ")
    script = (ROOT / ".ci" / "run").read_text()
    assert install.removeprefix("pip install ") in script
    assert f"\n{test}\n" in script


def test_the_demo_command_is_the_one_that_is_tested():
    (line,) = [block.strip() for block in blocks("bash") if "nnunet_ext demo" in block]
    assert line == "pip install -e . && nnunet_ext demo"  # test_demo.py runs the second part at its defaults


def test_crossval_command(nnunet, tmp_path):
    (line,) = [block.strip() for block in blocks("bash") if "nnunet_ext crossval" in block]
    printed = bash(f"{line} --device cpu --dry-run", nnunet.environment, tmp_path)
    for trainer in ("nnUNetTrainer", "SASANTrainer", "EMNetTrainer"):
        assert f"nnUNetv2_train 4 3d_fullres 4 -tr {trainer}" in printed


def test_import_command(golden, tmp_path):
    torch.save(golden("sasan").state_dict, tmp_path / "AUTHORS.pth")
    (line,) = [block for block in blocks("bash") if "import-weights" in block]
    bash(line, dict(os.environ), tmp_path)
    assert (tmp_path / "PRETRAINED.pth").is_file()


@pytest.mark.slow
def test_sizes_are_those_of_the_networks_command():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nnunet_ext.networks import NETWORKS
    from nnunet_ext.profiling.counts import network_costs

    costs = {row["name"]: row for row in network_costs(None, "")}
    for name in ("sasan", "em_net", "lstmsa"):
        sizes = f"{costs[name]['parameters'] / 1e6:.1f} M parameters, {costs[name]['multiply_adds'] / 1e9:.0f} G"
        assert f"{sizes} multiply-adds" in README
    sasan = NETWORKS["sasan"]
    with FakeTensorMode():
        masks = sum(fine.mask.numel() for fine in sasan.network(**sasan.paper).encoder.fine)
    assert f"they are {masks / 1e6:.1f} of its {costs['sasan']['parameters'] / 1e6:.1f} million parameters" in README


@pytest.mark.slow
def test_nnunet_commands(nnunet, tmp_path):
    """Runs in separate folders, on the CPU and with the smallest budget."""
    (script,) = [block for block in blocks("bash") if "nnUNetv2_train 4" in block]
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()
    raw = tmp_path / "nnUNet_raw" / nnunet.dataset
    shutil.copytree(nnunet.raw, raw)
    script = script.replace("-tr SASANTrainer", "-tr SASANTrainer -device cpu")
    script = script.replace("INPUT", str(raw / "imagesTs")).replace("OUTPUT", str(tmp_path / "out"))
    environment = {k: v for k, v in nnunet.environment.items() if k != "nnUNet_extTrainer"}
    printed = bash(script, environment | folders | BUDGET, tmp_path)
    assert "Everything needed is installed." in printed
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


@pytest.mark.slow
def test_plan_command(nnunet, tmp_path):
    (line,) = [block for block in blocks("bash") if "nnunet_ext plan" in block]
    assert "-p nnUNetSASANPlans" in README
    assert "Written: " in bash(line, nnunet.environment, tmp_path)
    assert (nnunet.preprocessed / "nnUNetSASANPlans.json").is_file()


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
