"""Wheel and sdist, installed into an environment of their own."""

import shutil
import sys
import zipfile

import pytest

from tests.helpers.fresh_environment import copy_source, install, python

pytestmark = pytest.mark.slow  # builds the wheel, and environments for it

CHECK = """
import sys
from pathlib import Path
import nnunet_ext
from nnunet_ext.nnunet.trainers import known_trainers, trainers_folder
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


CHECK_SCAN = """
import torch
from nnunet_ext.networks import EMNet
from nnunet_ext.ops import describe_backend
network = EMNet(
    input_channels=1, num_classes=2, patch_size=(16, 16, 16), n_stages=3, features_per_stage=(4, 4, 8),
    conv_op=torch.nn.Conv3d, kernel_sizes=3, strides=[1, 4, 2],
)
out = network(torch.randn(2, 1, 16, 16, 16))
out.square().mean().backward()
assert out.isfinite().all() and all(p.grad.isfinite().all() for p in network.parameters())
print(describe_backend("cpu"))
"""


def test_the_wheel_alone_serves_nnunet(wheels, tmp_path):
    (wheel,) = wheels.glob("*.whl")
    executable = install(wheel, tmp_path)
    printed = python(executable, "-c", CHECK, str(tmp_path / "demo"), cwd=tmp_path)
    assert "SASANTrainer" in printed
    if shutil.which("cc"):
        assert "C extension" in python(executable, "-c", CHECK_SCAN, cwd=tmp_path)


def test_without_a_compiler_it_installs_and_em_net_runs(tmp_path):
    source = copy_source(tmp_path)
    arguments = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "dist"))
    python(sys.executable, *arguments, str(source), cwd=tmp_path, CC="/bin/false")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    executable = install(wheel, tmp_path)
    assert "the C extension was not built" in python(executable, "-c", CHECK_SCAN, cwd=tmp_path)


def test_wheel_and_sdist_hold_what_they_should(wheels):
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "nnunet_ext/trainers/SASANTrainer.py",
        "nnunet_ext/plans/__init__.py",
        "nnunet_ext/cli/networks.json",
        "nnunet_ext/compare/report/templates/report.html",
        "nnunet_ext/data/hippocampus/LICENCE.md",
        "nnunet_ext/py.typed",
    } <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"nnunet_ext"}
    # For any Python 3: the compiled kernels link to no library of Python's.
    compiled = any(name.endswith(".so") for name in names)
    assert ("-py3-none-any.whl" in wheel.name) != compiled
    assert "-py3-none-" in wheel.name
    assert compiled == bool(shutil.which("cc"))
    assert wheel.stat().st_size < 10e6
    assert len(list(wheels.glob("*.tar.gz"))) == 1


def test_hard_dependencies_are_the_agreed_ones(wheels):
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    required = {
        line.split(":")[1].strip().split(">")[0]
        for line in lines
        if line.startswith("Requires-Dist") and "extra" not in line
    }
    assert required == {
        *("nnunetv2", "torch", "batchgenerators", "batchgeneratorsv2", "acvl-utils", "SimpleITK", "numpy"),
        *("matplotlib", "scipy", "tqdm", "pandas", "scikit-image", "scikit-learn", "jinja2", "rich"),
        *("timm", "safetensors"),  # nnU-Net brings both
    }
    assert "Requires-Python: >=3.10" in lines
    extras = {line.split(":")[1].strip() for line in lines if line.startswith("Provides-Extra")}
    assert extras == {"baselines", "bench", "completion", "docs", "export", "hub", "mamba", "slurm", "test"}
