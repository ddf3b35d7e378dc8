"""Trainers by name: ours, nnU-Net's, and those of the folders that `nnUNet_extTrainer` names."""

import ast
import difflib
import importlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from importlib import util
from inspect import signature
from pathlib import Path
from typing import Any

TRAINERS_VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> Path:
    """Folder that nnU-Net's `nnUNet_extTrainer` must name."""
    spec = util.find_spec("nnunet_ext.trainers")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("nnunet_ext is not installed; in a checkout run: pip install -e .")
    return Path(next(iter(spec.submodule_search_locations)))


def known_trainers() -> list[str]:
    """Names of our trainers."""
    return sorted(path.stem for path in trainers_folder().glob("[!_]*.py"))


def external_trainers(environment: Mapping[str, str]) -> str:
    """Value of `nnUNet_extTrainer` with our folder after those that it names already."""
    ours = str(trainers_folder())
    others = [part for part in environment.get(TRAINERS_VARIABLE, "").split(os.pathsep) if part and part != ours]
    return os.pathsep.join([*others, ours])


def trainer_summaries() -> dict[str, str]:
    """The first line of every docstring of our trainers, by name; read as text, without importing anything."""
    summaries = {}
    for name in known_trainers():
        module = ast.parse((trainers_folder() / f"{name}.py").read_text(encoding="utf-8"))
        (found,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)
        summaries[name] = (ast.get_docstring(found) or "").partition("\n")[0]
    return summaries


def register_trainers() -> None:
    """Lets nnU-Net find our trainers in this process, as `export nnUNet_extTrainer=...` does."""
    os.environ[TRAINERS_VARIABLE] = external_trainers(os.environ)


def trainer_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of trainers in which a class of this name is defined; None if there is none.

    The folders are ours, nnU-Net's and those of `nnUNet_extTrainer`, which are read as text: importing all trainers, as
    nnU-Net does, takes seconds.
    """
    if name in known_trainers():
        return trainers_folder()
    definition = re.compile(rf"^class {re.escape(name)}\b", re.M)
    for folder in _folders(environment):
        for file in sorted(folder.rglob("*.py")):
            if definition.search(file.read_text(errors="replace")):
                return folder
    return None


def check_trainers_exist(names: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Checks at once, without importing anything, that trainers may exist: their names stand in a folder's files.

    Raises:
        ValueError: for a name that no file of the trainers' folders mentions.
    """
    wanted = [name for name in names if name not in known_trainers()]
    if not wanted:
        return
    texts = [file.read_text(errors="replace") for folder in _folders(environment) for file in folder.rglob("*.py")]
    for name in wanted:
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts):
            raise _unknown(name)


def is_own_trainer(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a trainer is a user's own: in a folder of `nnUNet_extTrainer`, neither ours nor nnU-Net's."""
    folder = trainer_folder(name, environment)
    return folder in _external_folders(environment) and folder != trainers_folder()


def can_plan(name: str) -> bool:
    """Whether a cross-validation may plan for a trainer: one of ours or of the user's; nnU-Net's own have its plans."""
    return name in known_trainers() or is_own_trainer(name)


def _folders(environment: Mapping[str, str]) -> list[Path]:
    """Folders of trainers: nnU-Net's and those of `nnUNet_extTrainer`."""
    spec = util.find_spec("nnunetv2")
    packages = list(spec.submodule_search_locations or []) if spec is not None else []
    return [Path(package, "training", "nnUNetTrainer") for package in packages] + _external_folders(environment)


def _external_folders(environment: Mapping[str, str]) -> list[Path]:
    return [Path(part) for part in environment.get(TRAINERS_VARIABLE, "").split(os.pathsep) if part.strip()]


def find_trainer(name: str) -> type:
    """Class of a trainer: ours, nnU-Net's, or from a folder that `nnUNet_extTrainer` names.

    Raises:
        ValueError: for an unknown name, with ours in the message; and if a file of these folders cannot be imported.
    """
    if name in known_trainers():
        return getattr(importlib.import_module(f"nnunet_ext.trainers.{name}"), name)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    if name == nnUNetTrainer.__name__:
        return nnUNetTrainer
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            found = _search(name)
    except (RuntimeError, AssertionError):
        found = None
    except Exception as error:
        raise ValueError(
            f"trainer {name!r} was not found, because a file of the trainers' folders cannot be imported: "
            f"{type(error).__name__}: {error}; nnU-Net imports every file of {os.environ.get(TRAINERS_VARIABLE)!r}"
        ) from error
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> ValueError:
    return ValueError(
        f"unknown trainer {name!r}; {did_you_mean(name)}known: {', '.join(known_trainers())}, nnU-Net's own, and those "
        f"of the folders that the environment variable {TRAINERS_VARIABLE} names"
    )


def did_you_mean(name: str) -> str:
    """A question for the known trainer whose name is most alike; empty if none is."""
    alike = {known.lower(): known for known in known_trainers()}
    close = difflib.get_close_matches(name.lower(), alike, 1, cutoff=0.85)  # all names end alike
    return f"did you mean {alike[close[0]]}? " if close else ""


def network_of(trainer: Any) -> Any:
    """The network class that a trainer names; None: the plan's own, or a trainer that knows nothing of us."""
    return getattr(trainer, "located_network", lambda: None)()


def _search(name: str) -> type | None:
    """nnU-Net's search, without importing its own trainers where a user's folder has the class."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    if is_own_trainer(name):
        folder = str(trainer_folder(name))
        return recursive_find_python_class(
            folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
        )
    return recursive_find_trainer_class_by_name(name)


def build_network(
    trainer: Any,
    plans_manager: Any,
    configuration_manager: Any,
    *,
    input_channels: int,
    num_classes: int,
    deep_supervision: bool,
) -> Any:
    """The network that a trainer builds, by either signature of `build_network_architecture`, as nnU-Net calls it.

    Args:
        trainer: Any trainer of nnU-Net's, its class or an object of it.
        plans_manager: nnU-Net's ``PlansManager``.
        configuration_manager: nnU-Net's ``ConfigurationManager``.
        input_channels: Channels of the input.
        num_classes: Number of logits.
        deep_supervision: Whether the network returns outputs for deep supervision.
    """
    build = trainer.build_network_architecture
    if "plans_manager" in signature(build).parameters:
        return build(plans_manager, configuration_manager, input_channels, num_classes, deep_supervision)
    architecture = (
        configuration_manager.network_arch_class_name,
        configuration_manager.network_arch_init_kwargs,
        configuration_manager.network_arch_init_kwargs_req_import,
    )
    return build(*architecture, input_channels, num_classes, deep_supervision)
