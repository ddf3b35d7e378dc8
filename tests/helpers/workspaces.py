"""nnU-Net folders for tests, made of the shipped scans."""

import copy
import json
import os
import subprocess
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import SimpleITK as sitk

from nnunet_ext.nnunet.trainers import trainers_folder
from nnunet_ext.utils.subprocesses import console_script

SHIPPED = Path(str(resources.files("nnunet_ext") / "data" / "hippocampus"))
SHIPPED_CASES = sorted(file.name.removesuffix(".nii.gz") for file in (SHIPPED / "labelsTr").iterdir())


def thin_out(file: Path, folder: Path, every: int) -> None:
    """Copies a scan or mask, with every so-many-th voxel of each axis."""
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.ReadImage(str(file))[::every, ::every, ::every], str(folder / file.name))


def lay_out(raw: Path, training: Sequence[str], test: Sequence[str] = (), every: int = 1) -> None:
    """A raw dataset of shipped, labelled scans, thinned out; those for testing have labels too."""
    for part, cases in (("Tr", training), ("Ts", test)):
        for kind, ending in (("images", "_0000.nii.gz"), ("labels", ".nii.gz")):
            for case in cases:
                thin_out(SHIPPED / f"{kind}Tr" / f"{case}{ending}", raw / f"{kind}{part}", every)
    dataset = json.loads((SHIPPED / "dataset.json").read_text()) | {"numTraining": len(training)}
    (raw / "dataset.json").write_text(json.dumps(dataset))


def nnunet_variables(root: Path) -> dict[str, str]:
    """The environment of nnU-Net's commands that work below a folder."""
    return os.environ | {
        **{name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
        "nnUNet_extTrainer": str(trainers_folder()),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "2",
        "nnUNet_compile": "f",
        "MPLBACKEND": "Agg",
    }


class NNUNetWorkspace:
    """nnU-Net folders with a few of the shipped scans, planned and preprocessed by nnU-Net's own command.

    Configurations: nnU-Net's `3d_fullres` and `2d`, and beside each a `tiny` one with small patches and widths.
    """

    dataset_id = 4
    dataset = "Dataset004_Hippocampus"

    def __init__(self, root: Path, cases: int = 10) -> None:
        self.root = root
        self.raw = root / "nnUNet_raw" / self.dataset
        self.preprocessed = root / "nnUNet_preprocessed" / self.dataset
        self.results = root / "nnUNet_results" / self.dataset
        self.environment = nnunet_variables(root)
        for name in ("nnUNet_preprocessed", "nnUNet_results"):
            (root / name).mkdir(parents=True, exist_ok=True)
        if not self.plans_file.is_file():  # a copy of another one has all
            self._lay_out(cases)
            self._prepare()

    def _lay_out(self, cases: int) -> None:
        lay_out(self.raw, SHIPPED_CASES[:cases])
        thin_out(sorted((SHIPPED / "imagesTs").iterdir())[0], self.raw / "imagesTs", every=1)

    def _prepare(self) -> None:
        self.run("nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "2d", "-np", "2", "-npfp", "2")
        plans = self.plans
        for name, patch in (("3d_fullres", [16, 24, 16]), ("2d", [24, 16])):
            plans["configurations"][f"{name}_tiny"] = self.tiny(plans["configurations"][name], patch)
        self.write_plans(plans)

    @staticmethod
    def tiny(configuration: dict, patch: list[int]) -> dict:
        """A planned configuration with a small patch, batch and network."""
        changed = copy.deepcopy(configuration) | {"batch_size": 2, "patch_size": patch}
        arguments = changed["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [8] * arguments["n_stages"]
        return changed

    def write_plans(self, plans: dict) -> None:
        self.plans_file.write_text(json.dumps(plans))

    @property
    def plans_file(self) -> Path:
        return self.preprocessed / "nnUNetPlans.json"

    @property
    def plans(self) -> dict:
        return json.loads(self.plans_file.read_text())

    @property
    def dataset_json(self) -> dict:
        return json.loads((self.preprocessed / "dataset.json").read_text())

    def model(self, trainer: str, configuration: str, plans: str = "nnUNetPlans") -> Path:
        return self.results / f"{trainer}__{plans}__{configuration}" / "fold_0"

    def run(self, command: str, *arguments: str, **environment: str) -> str:
        """Runs a console command to success and returns what it printed."""
        done = self.attempt(command, *arguments, **environment)
        assert done.returncode == 0, f"{command} {' '.join(arguments)} failed:\n{done.stdout[-4000:]}"
        return done.stdout

    def attempt(self, command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [console_script(command), *arguments],
            env=self.environment | environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
