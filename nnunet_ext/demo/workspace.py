"""The demo's working folder: its layout, settings and data."""

import json
import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib import resources
from math import ceil
from pathlib import Path

from nnunet_ext import __version__
from nnunet_ext.nnunet.trained_model import model_name
from nnunet_ext.nnunet.trainers import known_trainers, trainers_folder
from nnunet_ext.training.budget import Budget
from nnunet_ext.utils.files import replacing
from nnunet_ext.utils.subprocesses import is_running

DATASET_ID = 4
DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_demo"
_BASE_CONFIGURATION = "3d_fullres"
_BATCH_SIZE = 2
_ITERATIONS_PER_EPOCH = 10
_VAL_ITERATIONS = 2
_MARKER = "nnunet_ext_demo.json"


@dataclass(frozen=True)
class Settings:
    """Settings of the demo; a folder can be resumed only with the settings that it was started with.

    Attributes:
        iterations: Training iterations per trainer; numbers above ten are rounded up to a multiple of ten.
        device: cpu, cuda or mps.
    """

    iterations: int
    device: str

    @property
    def budget(self) -> Budget:
        """Budget with short epochs, so that progress and curves are visible."""
        per_epoch = min(self.iterations, _ITERATIONS_PER_EPOCH)
        return Budget(ceil(self.iterations / per_epoch), per_epoch, _VAL_ITERATIONS)


class Workspace:
    """The demo's folder; creates it, or resumes one that an earlier run created.

    Raises:
        ValueError: if the folder holds something else, or a demo with other settings.
    """

    def __init__(self, folder: str | Path, settings: Settings) -> None:
        self.root = Path(folder).resolve()
        self.settings = settings
        marker = self.root / _MARKER
        wanted = asdict(settings)
        if marker.is_file():
            found = json.loads(marker.read_text())["settings"]
            if found != wanted:
                raise ValueError(
                    f"{self.root} holds a demo with other settings ({found}; requested: {wanted}); "
                    "remove that folder or give another --folder"
                )
        elif self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ValueError(f"{self.root} is neither empty nor a demo; give another --folder")
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(marker, json.dumps({"version": __version__, "settings": wanted}, indent=2))

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / DATASET

    @property
    def preprocessed(self) -> Path:
        return self.root / "nnUNet_preprocessed" / DATASET

    @property
    def plans(self) -> Path:
        return self.preprocessed / "nnUNetPlans.json"

    @property
    def unlabelled(self) -> Path:
        return self.raw / "imagesTs"

    def log(self, step: str) -> Path:
        return self.root / "logs" / f"{step}.txt"

    def model(self, trainer: str) -> Path:
        return self.root / "nnUNet_results" / DATASET / model_name(trainer, "nnUNetPlans", CONFIGURATION) / "fold_0"

    def predictions(self, trainer: str) -> Path:
        return self.root / "predictions" / trainer

    def environment(self) -> dict[str, str]:
        """Environment of nnU-Net's commands; the user's own nnU-Net folders are not touched."""
        folders = {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        ours = {"nnUNet_extTrainer": str(trainers_folder()), "nnUNet_compile": "f", "MPLBACKEND": "Agg"}
        defaults = {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2"}
        return defaults | dict(os.environ) | folders | ours | self.settings.budget.environment()

    def lay_out_raw(self) -> None:
        """Copies the shipped scans to nnU-Net's raw format; existing files are kept."""
        source = resources.files("nnunet_ext") / "data" / "hippocampus"
        with resources.as_file(source) as folder:
            for part in ("imagesTr", "labelsTr", "imagesTs"):
                target = self.raw / part
                target.mkdir(parents=True, exist_ok=True)
                for file in sorted((folder / part).glob("*.nii.gz")):
                    if not (target / file.name).is_file():
                        partial = target / (file.name + ".partial")
                        shutil.copyfile(file, partial)
                        os.replace(partial, target / file.name)
            shutil.copyfile(folder / "dataset.json", self.raw / "dataset.json")

    def claim(self) -> None:
        """Registers this process as the one that works in the folder.

        Raises:
            ValueError: if another process works there, or a command that a killed demo left behind.
        """
        for file in (self.root / "demo.pid", self.command_pid):
            if file.is_file() and is_running(pid := int(file.read_text() or 0)) and pid != os.getpid():
                raise ValueError(
                    f"process {pid} is still running in {self.root}: wait for it or stop it (or, if that process ID "
                    f"now belongs to another program, remove {file})"
                )
        write_atomically(self.root / "demo.pid", str(os.getpid()))

    @property
    def command_pid(self) -> Path:
        """File with the process ID of the running nnU-Net command."""
        return self.root / "command.pid"

    def add_configuration(self) -> None:
        """Adds the demo's configuration to nnU-Net's plan: 3d_fullres with batch 2 and half the width, to suit CPUs."""
        plans = json.loads(self.plans.read_text())
        if CONFIGURATION not in plans["configurations"]:
            architecture = deepcopy(plans["configurations"][_BASE_CONFIGURATION]["architecture"])
            arguments = architecture["arch_kwargs"]
            arguments["features_per_stage"] = [features // 2 for features in arguments["features_per_stage"]]
            plans["configurations"][CONFIGURATION] = {
                "inherits_from": _BASE_CONFIGURATION,
                "batch_size": _BATCH_SIZE,
                "architecture": architecture,
            }
            write_atomically(self.plans, json.dumps(plans, indent=4))

    @property
    def preprocessing_done(self) -> Path:
        """File that exists once nnU-Net's preprocessing has succeeded."""
        return self.root / "preprocessed.done"

    def count_preprocessed(self) -> int:
        return len(list((self.preprocessed / f"nnUNetPlans_{_BASE_CONFIGURATION}").glob("*.pkl")))


def check_trainers(trainers: Sequence[str]) -> None:
    """Raises ValueError for a trainer that is not ours (lists the known ones) or is named twice."""
    known = known_trainers()
    for trainer in trainers:
        if trainer not in known:
            raise ValueError(f"unknown trainer {trainer!r}; known: {', '.join(known)}")
    if len(set(trainers)) < len(trainers):
        raise ValueError(f"a trainer is named twice: {' '.join(trainers)}")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file completely or not at all."""
    with replacing(path, "w") as file:
        file.write(text)
