"""The files that GitHub, container builders and citation tools read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext import __version__
from tests.helpers.paths import ROOT
from tests.helpers.workspaces import SHIPPED

GITHUB = ROOT / ".github"
SCHEMAS = {
    "vendor.github-workflows": sorted((GITHUB / "workflows").glob("*.yml")),
    "vendor.github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "idea")],
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "vendor.citation-file-format": [ROOT / "CITATION.cff"],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_they_have_the_form_that_is_expected(schema):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    if schema == "vendor.citation-file-format":
        command += ["--default-filetype", "yaml"]
    done = subprocess.run([*command, *map(str, SCHEMAS[schema])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_citation_names_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "containers/Dockerfile", "containers/Dockerfile.model"],
        ["shellcheck", "containers/predict.sh"],
    ],
)
def test_container_files_are_in_order(command):
    executable = shutil.which(command[0])
    assert executable is not None, f"{command[0]} is in the test extra"
    done = subprocess.run([executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_both_containers_run_the_same_script():
    for recipe in ("Dockerfile", "nnunet_ext.def"):
        text = (ROOT / "containers" / recipe).read_text()
        assert "containers/predict.sh" in text
        assert "nnUNet_results=/tmp/nnUNet_results" in text


def test_both_containers_install_a_packed_model_where_their_script_looks_for_it():
    for recipe in ("Dockerfile.model", "model.def"):
        assert (
            "nnunet_ext install /tmp/model.zip --results /model --device cpu"
            in (ROOT / "containers" / recipe).read_text()
        )
    assert "NNUNET_EXT_MODEL:-/model" in (ROOT / "containers" / "predict.sh").read_text()


@pytest.mark.slow
def test_a_container_predicts_with_a_mounted_model(tmp_path):
    """The script as the containers run it, but with folders of this machine."""
    scans, masks = tmp_path / "input", tmp_path / "output"
    scans.mkdir()
    image = sorted((SHIPPED / "imagesTr").iterdir())[0]
    shutil.copy(image, scans)
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    mounted = {"INPUT": scans, "OUTPUT": masks, "MODEL": ROOT / "tests" / "data" / "version_0_1_0" / "SASANTrainer"}
    environment = {f"NNUNET_EXT_{name}": str(folder) for name, folder in mounted.items()}
    search = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    options = ("-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1")
    command = ["sh", str(ROOT / "containers" / "predict.sh"), *options]
    subprocess.run(command, env=os.environ | folders | environment | search, cwd=tmp_path, check=True)
    assert [mask.name for mask in masks.glob("*.nii.gz")] == [image.name.replace("_0000", "")]
    environment["NNUNET_EXT_MODEL"] = str(scans)
    done = subprocess.run(
        command, env=os.environ | folders | environment | search, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "has no trained model" in done.stderr) == (2, True)
