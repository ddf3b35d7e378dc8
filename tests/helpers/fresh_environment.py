"""Wheels of this checkout, installed into environments of their own."""

import os
import shutil
import sys
import sysconfig
import venv
from pathlib import Path

from tests.helpers.paths import ROOT
from tests.helpers.shell import printed_by


def python(executable, *arguments, cwd, **environment):
    """Runs a Python outside the checkout; returns what it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return printed_by([str(executable), *arguments], inherited | environment, cwd)


def copy_source(folder):
    """A copy of the checkout that holds no build results."""
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "*.so", "build", "dist", "__pycache__", "nnunet_ext_demo")
    return Path(shutil.copytree(ROOT, folder / "source", ignore=ignored))


def build(folder):
    """Builds an sdist, and a wheel from it; returns their folder."""
    arguments = ("-m", "build", "--no-isolation", "--outdir", str(folder / "dist"))
    python(sys.executable, *arguments, cwd=copy_source(folder))
    return folder / "dist"


def install(wheel, folder):
    """An environment with the wheel and, behind it, this one's packages and commands of nnU-Net; no checkout."""
    venv.create(folder / "venv", with_pip=False)
    scheme = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    executable = Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    pip = (sys.executable, "-m", "pip", "--python", str(executable), "install", "-q", "--no-deps", str(wheel))
    python(*pip, cwd=folder)
    # A path in a .pth file is searched last, and .pth files found there (an editable install's) are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for script in Path(sys.executable).parent.glob("nnUNetv2_*"):
        _, *lines = script.read_text().splitlines(keepends=True)
        copied = executable.parent / script.name
        copied.write_text("".join([f"#!{executable}\n", *lines]))
        copied.chmod(0o755)
    return executable
