"""Wheel and sdist, installed into an environment of their own."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

CHECK = """
import sys
from pathlib import Path
import nnunet_ext
from nnunet_ext.installed import known_trainers, trainers_folder
assert Path(nnunet_ext.__file__).is_relative_to(sys.prefix), nnunet_ext.__file__
import os
os.environ["nnUNet_extTrainer"] = str(trainers_folder())
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
for name in known_trainers():
    assert recursive_find_trainer_class_by_name(name).__name__ == name
from nnunet_ext.demo.workspace import Settings, Workspace
space = Workspace(sys.argv[1], Settings(1, "cpu"))
space.lay_out_raw()
assert len(list((space.raw / "labelsTr").iterdir())) == 24
assert len(list((space.raw / "imagesTs").iterdir())) == 4
print("found:", *known_trainers())
"""


def python(executable, *arguments, cwd):
    done = subprocess.run(
        [str(executable), *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from the sdist, from a copy of the checkout that holds no build results."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "nnunet_ext_demo")
    source = Path(shutil.copytree(ROOT, folder / "source", ignore=ignored))
    python(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), cwd=source)
    return folder / "dist"


def test_the_wheel_alone_serves_nnunet(built, tmp_path):
    """An environment with the wheel and, behind it, this one's packages for nnU-Net and torch; no checkout."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    scheme = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    executable = Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    python(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    # A path in a .pth file is searched last, and .pth files found there (an editable install's) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    printed = python(executable, "-c", CHECK, str(tmp_path / "demo"), cwd=tmp_path)
    assert "SASANTrainer" in printed


def test_wheel_and_sdist_hold_what_they_should(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "nnunet_ext/trainers/SASANTrainer.py",
        "nnunet_ext/plans/__init__.py",
        "nnunet_ext/data/hippocampus/LICENCE.md",
        "nnunet_ext/py.typed",
    } <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"nnunet_ext"}
    assert wheel.name.endswith("py3-none-any.whl")
    assert wheel.stat().st_size < 10e6
    assert len(list(built.glob("*.tar.gz"))) == 1


def test_hard_dependencies_are_the_agreed_ones(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    required = {
        line.split(":")[1].strip().split(">")[0]
        for line in lines
        if line.startswith("Requires-Dist") and "extra" not in line
    }
    assert required == {"nnunetv2", "torch", "batchgenerators", "SimpleITK", "numpy", "matplotlib", "tqdm"}
    assert "Requires-Python: >=3.10" in lines
    extras = {line.split(":")[1].strip() for line in lines if line.startswith("Provides-Extra")}
    assert extras == {"mamba", "surface", "test"}
