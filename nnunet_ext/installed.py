"""Where the installed package keeps things."""

import os
from importlib import util
from pathlib import Path

_VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> Path:
    """The folder for nnU-Net's `nnUNet_extTrainer`."""
    spec = util.find_spec("nnunet_ext.trainers")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("nnunet_ext is not installed; in a checkout run: pip install -e .")
    return Path(next(iter(spec.submodule_search_locations)))


def known_trainers() -> list[str]:
    """Names of our trainers."""
    return sorted(path.stem for path in trainers_folder().glob("[!_]*.py"))


def register_trainers() -> None:
    """Lets nnU-Net find our trainers in this process, as `export nnUNet_extTrainer=...` does."""
    folders = [folder for folder in os.environ.get(_VARIABLE, "").split(os.pathsep) if folder]
    ours = str(trainers_folder())
    if ours not in folders:
        os.environ[_VARIABLE] = os.pathsep.join([*folders, ours])
