"""Where the installed package keeps things."""

import os
from collections.abc import Mapping
from importlib import util
from pathlib import Path

TRAINERS_VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> Path:
    """The folder for nnU-Net's `nnUNet_extTrainer`."""
    spec = util.find_spec("nnunet_ext.trainers")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("nnunet_ext is not installed; in a checkout run: pip install -e .")
    return Path(next(iter(spec.submodule_search_locations)))


def known_trainers() -> list[str]:
    """Names of our trainers."""
    return sorted(path.stem for path in trainers_folder().glob("[!_]*.py"))


def external_trainers(environment: Mapping[str, str]) -> str:
    """Value of `nnUNet_extTrainer` with our folder behind those that are there."""
    ours = str(trainers_folder())
    others = [part for part in environment.get(TRAINERS_VARIABLE, "").split(os.pathsep) if part and part != ours]
    return os.pathsep.join([*others, ours])


def register_trainers() -> None:
    """Lets nnU-Net find our trainers in this process, as `export nnUNet_extTrainer=...` does."""
    os.environ[TRAINERS_VARIABLE] = external_trainers(os.environ)
