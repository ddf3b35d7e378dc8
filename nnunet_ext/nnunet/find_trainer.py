"""Trainers by name, ours and nnU-Net's."""

import importlib
import os
from contextlib import redirect_stdout

from nnunet_ext.nnunet.trainers import known_trainers


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
