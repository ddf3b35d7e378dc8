"""Wheel and sdist, installed into an environment of their own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # builds the wheel, and environments for it

ROOT = Path(__file__).parent.parent

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


def python(executable, *arguments, cwd, **environment):
    done = subprocess.run(
        [str(executable), *arguments],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def copy_source(folder):
    """A copy of the checkout that holds no build results."""
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "*.so", "build", "dist", "__pycache__", "nnunet_ext_demo")
    return Path(shutil.copytree(ROOT, folder / "source", ignore=ignored))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    arguments = ("-m", "build", "--no-isolation", "--outdir", str(folder / "dist"))
    python(sys.executable, *arguments, cwd=copy_source(folder))
    return folder / "dist"


def install(wheel, folder):
    """An environment with the wheel and, behind it, this one's packages for nnU-Net and torch; no checkout."""
    venv.create(folder / "venv", with_pip=False)
    scheme = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    executable = Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    python(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel), cwd=folder)
    # A path in a .pth file is searched last, and .pth files found there (an editable install's) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return executable


def test_the_wheel_alone_serves_nnunet(built, tmp_path):
    (wheel,) = built.glob("*.whl")
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


def test_wheel_and_sdist_hold_what_they_should(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "nnunet_ext/trainers/SASANTrainer.py",
        "nnunet_ext/plans/__init__.py",
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
    assert required == {
        *("nnunetv2", "torch", "batchgenerators", "batchgeneratorsv2", "acvl-utils", "SimpleITK", "numpy"),
        *("matplotlib", "scipy", "tqdm", "pandas", "scikit-image", "scikit-learn", "jinja2", "rich"),
    }
    assert "Requires-Python: >=3.10" in lines
    extras = {line.split(":")[1].strip() for line in lines if line.startswith("Provides-Extra")}
    assert extras == {"baselines", "bench", "docs", "mamba", "slurm", "test"}
