"""The demo's working folder: its layout, settings and data."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from math import ceil
from pathlib import Path

from nnunet_ext import __version__
from nnunet_ext.nnunet.budget import Budget, StepSettings
from nnunet_ext.nnunet.trainers import known_trainers
from nnunet_ext.utils.files import replacing

DATASET = "Dataset004_Hippocampus"
_ITERATIONS_PER_EPOCH = 50
_VAL_ITERATIONS = 2
_STEPS = StepSettings(learning_rate=0.03, momentum=0.9)
"""With nnU-Net's own, one training in several does not learn one of the two classes within the demo's iterations."""
_MARKER = "nnunet_ext_demo.json"


@dataclass(frozen=True)
class Settings:
    """Settings of the demo; a folder can be resumed only with the settings that it was started with.

    Attributes:
        iterations: Training iterations per trainer; numbers above 50 are rounded up to a multiple of 50.
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
            with replacing(marker, "w") as file:
                json.dump({"version": __version__, "settings": wanted}, file, indent=2)

    @property
    def raw(self) -> Path:
        return self.root / "nnUNet_raw" / DATASET

    @property
    def report(self) -> Path:
        return self.root / "report"

    def environment(self) -> dict[str, str]:
        """Variables of nnU-Net's commands; the user's own nnU-Net folders are not touched."""
        folders = {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        # One process per training exports predictions: nnU-Net starts eight, and each takes seconds to start.
        others = {"nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "MPLBACKEND": "Agg"}
        return folders | others | self.settings.budget.environment() | _STEPS.environment()

    def lay_out_raw(self) -> None:
        """Copies the shipped scans to nnU-Net's raw format; existing files are kept."""
        for name in ("nnUNet_preprocessed", "nnUNet_results"):
            (self.root / name).mkdir(exist_ok=True)
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


def check_trainers(trainers: Sequence[str]) -> None:
    """Raises ValueError for fewer than two trainers, one that is not ours (lists the known ones) or is named twice."""
    known = known_trainers()
    for trainer in trainers:
        if trainer not in known:
            raise ValueError(f"unknown trainer {trainer!r}; known: {', '.join(known)}")
    if len(set(trainers)) < len(trainers):
        raise ValueError(f"a trainer is named twice: {' '.join(trainers)}")
    if len(trainers) < 2:
        raise ValueError(f"--trainers {' '.join(trainers)}: the demo compares trainers; name at least two")
