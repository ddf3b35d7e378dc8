import copy
import json
import os
import pydoc
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ext import networks
from nnunet_ext.demo.command import console_script
from nnunet_ext.installed import trainers_folder

GOLDEN = Path(__file__).parent / "golden"


class Golden:
    """A golden file: its settings, the authors' state dict, and its arrays as tensors."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(GOLDEN / f"{name}.npz")
        self.meta = json.loads(str(self.arrays["meta"]))
        self.state_dict = {
            key.removeprefix("weights/"): torch.from_numpy(self.arrays[key])
            for key in self.arrays.files
            if key.startswith("weights/")
        }

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key])


@pytest.fixture
def golden():
    return Golden


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def assert_close():
    """Largest difference relative to the largest expected value."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
        assert actual.shape == expected.shape
        error = ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
        assert error <= tolerance, f"relative difference {error:.2e} is above {tolerance:.0e}"

    return check


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device; none here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


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
        self.environment = os.environ | {
            **{name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")},
            "nnUNet_extTrainer": str(trainers_folder()),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "2",
            "nnUNet_compile": "f",
            "MPLBACKEND": "Agg",
        }
        for name in ("nnUNet_preprocessed", "nnUNet_results"):
            (root / name).mkdir(parents=True)
        self._lay_out(cases)
        self.run("nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "2d", "-np", "2", "-npfp", "2")
        plans = json.loads(self.plans_file.read_text())
        for name, patch in (("3d_fullres", [16, 24, 16]), ("2d", [24, 16])):
            tiny = copy.deepcopy(plans["configurations"][name]) | {"batch_size": 2, "patch_size": patch}
            arguments = tiny["architecture"]["arch_kwargs"]
            arguments["features_per_stage"] = [8] * arguments["n_stages"]
            plans["configurations"][f"{name}_tiny"] = tiny
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

    def _lay_out(self, cases: int) -> None:
        source = Path(str(resources.files("nnunet_ext") / "data" / "hippocampus"))
        names = sorted(file.name.removesuffix(".nii.gz") for file in (source / "labelsTr").iterdir())[:cases]
        for folder in ("imagesTr", "labelsTr", "imagesTs"):
            (self.raw / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(source / "imagesTr" / f"{name}_0000.nii.gz", self.raw / "imagesTr")
            shutil.copy(source / "labelsTr" / f"{name}.nii.gz", self.raw / "labelsTr")
        shutil.copy(sorted((source / "imagesTs").iterdir())[0], self.raw / "imagesTs")
        dataset = json.loads((source / "dataset.json").read_text()) | {"numTraining": cases}
        (self.raw / "dataset.json").write_text(json.dumps(dataset))


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory):
    return NNUNetWorkspace(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture
def all_scans(tmp_path_factory):
    """As `nnunet`, with all of the shipped scans."""
    return NNUNetWorkspace(tmp_path_factory.mktemp("all_scans"), cases=24)


@pytest.fixture
def run_ranks(tmp_path):
    """Runs a script as the two ranks of a DDP training, its arguments the rank and a file to meet at."""

    def run(script: str) -> list[str]:
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", script, str(rank), str(tmp_path / "store")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = []
        for process in processes:
            printed, error = process.communicate(timeout=300)
            assert process.returncode == 0, error[-3000:]
            outputs.append(printed)
        return outputs

    return run


@pytest.fixture
def nnunet_environment(nnunet, monkeypatch):
    """nnU-Net's variables of the workspace, in this process."""
    for name, value in nnunet.environment.items():
        if name.startswith("nnUNet"):
            monkeypatch.setenv(name, value)
    return nnunet


@pytest.fixture
def name_network():
    """Makes a configuration's plan one for a network of ours, as a user or a planner writes it."""

    def change(name: str, configuration: dict) -> None:
        arguments = configuration["architecture"]["arch_kwargs"]
        keys = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")
        topology = {key: arguments[key] for key in keys} | {"patch_size": configuration["patch_size"]}
        adapt = getattr(getattr(networks, name), "adapt_topology", None)
        if adapt is not None:
            conv_op = topology["conv_op"]
            topology = adapt(**topology | {"conv_op": pydoc.locate(conv_op)}) | {"conv_op": conv_op}
        configuration["architecture"] = {
            "network_class_name": f"nnunet_ext.networks.{name}",
            "arch_kwargs": topology,
            "_kw_requires_import": ["conv_op"],
        }

    return change


@pytest.fixture
def authors_plan():
    """Adds a configuration `authors` with the sizes of the golden network."""

    def change(plans: dict) -> dict:
        configuration = copy.deepcopy(plans["configurations"]["3d_fullres_tiny"]) | {"patch_size": [32, 32, 32]}
        configuration["architecture"]["arch_kwargs"] |= {
            "n_stages": 5,
            "features_per_stage": [4, 4, 8, 8, 16],
            "kernel_sizes": [[3, 3, 3]] * 5,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * 4,
        }
        plans["configurations"]["authors"] = configuration
        plans["plans_name"] = "AuthorsPlans"
        return plans

    return change


@pytest.fixture
def make_trainer(nnunet_environment, tmp_path, monkeypatch):
    """Builds and initialises a trainer as nnUNetv2_train does, its results in a folder of the test."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))

    def make(name="SASANTrainer", configuration="3d_fullres_tiny", plans=None, dataset=None):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        plans = copy.deepcopy(plans or nnunet_environment.plans) | {"continue_training": False}
        trainer_class = recursive_find_trainer_class_by_name(name)
        trainer = trainer_class(
            plans, configuration, 0, dataset or nnunet_environment.dataset_json, torch.device("cpu")
        )
        trainer.initialize()
        trainer.network.train()
        return trainer

    return make
