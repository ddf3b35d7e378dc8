"""Finds what is missing in an installation."""

import os
import platform
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import nnunet_ext
from nnunet_ext.nnunet.trainers import trainers_folder

_MIN_PYTHON = (3, 10)
_MIN_NNUNET = (2, 8)
_OPTIONAL = {
    "mamba_ssm": 'CUDA scan of EM-Net; not needed. pip install "nnunet_ext[mamba]"',
    "causal_conv1d": 'CUDA convolution of EM-Net; not needed. pip install "nnunet_ext[mamba]"',
    "triton": "GPU kernels without a CUDA compiler; comes with PyTorch's CUDA builds on Linux",
}
_FOLDERS = {
    "nnUNet_raw": "raw data",
    "nnUNet_preprocessed": "preprocessed data",
    "nnUNet_results": "trained models",
}


@dataclass(frozen=True)
class Check:
    """One finding: `state` is ok, missing (needed) or optional (absent, not needed)."""

    name: str
    state: str
    found: str
    remedy: str = ""


def diagnose(environment: Mapping[str, str] = os.environ, search_path: Sequence[str] = sys.path) -> list[Check]:
    """Checks Python, torch and its device, nnU-Net, its four variables, optional kernels, and shadowing packages."""
    return [
        _python(),
        _package(search_path),
        *_torch(),
        _nnunet(),
        *(_folder(environment, name, what) for name, what in _FOLDERS.items()),
        _trainers(environment),
        *_selective_scan(),
        *(_optional(name, remedy) for name, remedy in _OPTIONAL.items()),
    ]


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info[:2] >= _MIN_PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "missing", found, f"install Python {'.'.join(map(str, _MIN_PYTHON))} or newer")


def _package(search_path: Sequence[str]) -> Check:
    ours = Path(nnunet_ext.__file__).resolve().parent
    others = {
        file.resolve().parent
        for entry in search_path
        if (file := Path(entry or ".") / "nnunet_ext" / "__init__.py").is_file()
    } - {ours}
    found = f"{nnunet_ext.__version__} in {ours}"
    if others:
        where = ", ".join(map(str, sorted(others)))
        return Check(
            "nnunet_ext", "missing", found, f"another package of this name (Lifelong-nnUNet?) is in {where}: remove it"
        )
    return Check("nnunet_ext", "ok", found)


def _torch() -> list[Check]:
    try:
        import torch
    except ImportError as error:
        return [Check("torch", "missing", str(error), "pip install torch")]
    if torch.cuda.is_available():
        device = f"cuda: {torch.cuda.get_device_name()}"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu (no CUDA device or MPS: train with -device cpu, which is slow)"
    return [Check("torch", "ok", torch.__version__), Check("device", "ok", device)]


def _nnunet() -> Check:
    needed = ".".join(map(str, _MIN_NNUNET))
    remedy = f'pip install "nnunetv2>={needed}"'
    try:
        found = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        return Check("nnunetv2", "missing", "not installed", remedy)
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or tuple(map(int, numbers.groups())) < _MIN_NNUNET:
        return Check("nnunetv2", "missing", f"{found}, which cannot find external trainers", remedy)
    return Check("nnunetv2", "ok", found)


def _folder(environment: Mapping[str, str], name: str, what: str) -> Check:
    value = environment.get(name)
    if not value:
        return Check(name, "missing", "not set", f"export {name}=/path/to/folder  ({what})")
    if not Path(value).is_dir():
        return Check(name, "missing", f"{value} is not a folder", f"mkdir -p '{value}'")
    return Check(name, "ok", value)


def _trainers(environment: Mapping[str, str]) -> Check:
    name, ours = "nnUNet_extTrainer", trainers_folder()
    remedy = f'export {name}="$(nnunet_ext trainers)"'
    value = environment.get(name)
    if not value:
        return Check(name, "missing", "not set: nnU-Net cannot find our trainers", remedy)
    if ours.resolve() not in {Path(part).resolve() for part in value.split(os.pathsep) if part.strip()}:
        return Check(name, "missing", f"{value} does not contain {ours}", remedy)
    return Check(name, "ok", value)


def _selective_scan() -> list[Check]:
    """The backend of EM-Net's scan on the training device and on the CPU, and whether the C extension is refused."""
    try:
        import torch

        from nnunet_ext.ops import describe_backend
        from nnunet_ext.ops.native import REBUILD, native_library, refusal
    except ImportError:
        return []  # torch's own row says so
    kinds = ["cpu"]
    if torch.cuda.is_available():
        kinds.insert(0, "cuda")
    elif torch.backends.mps.is_available():
        kinds.insert(0, "mps")
    checks = [Check(f"selective scan on {kind}", "ok", describe_backend(kind)) for kind in kinds]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table shows it
        reason = refusal()
    if reason is not None:
        checks.append(Check("C extension", "missing", reason, REBUILD))
    elif native_library() is None:
        remedy = "install a C compiler and reinstall nnunet_ext: EM-Net is then several times faster on the CPU"
        checks[-1] = Check(checks[-1].name, "optional", checks[-1].found, remedy)
    return checks


def _optional(name: str, remedy: str) -> Check:
    if util.find_spec(name) is None:
        return Check(name, "optional", "not installed", remedy)
    return Check(name, "ok", "installed")
