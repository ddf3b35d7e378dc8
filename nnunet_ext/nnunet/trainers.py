"""Trainers by name: ours, nnU-Net's, and those of the folders that `nnUNet_extTrainer` names."""

import importlib
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
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


def find_trainer(name: str) -> type:
    """The class of a trainer of ours, of nnU-Net, or of the folder that `nnUNet_extTrainer` names.

    Raises:
        ValueError: for an unknown name; the message lists ours.
    """
    if name in known_trainers():
        return getattr(importlib.import_module(f"nnunet_ext.trainers.{name}"), name)
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            found = recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError):
        found = None
    if found is None:
        raise ValueError(f"unknown trainer {name!r}; known: {', '.join(known_trainers())}, and nnU-Net's own")
    return found
