import copy
import json
import os
import pydoc
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# Read when torch is imported, here and by nnU-Net's commands. Threads of processes that run side by side otherwise wait
# for each other at full speed; nnU-Net predicts with a thread a core, whatever OMP_NUM_THREADS says.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Trainers with an encoder of timm get a small one, from scratch, also in the commands that tests run.
os.environ |= {
    "NNUNET_EXT_ENCODER": "timm:test_resnet",
    "NNUNET_EXT_ENCODER_FROZEN": "0",
    "NNUNET_EXT_ENCODER_WEIGHTS": "none",
}

# A shell without job control starts what it runs beside it (`pytest &`) with SIGINT ignored, which processes inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from filelock import FileLock

from nnunet_ext import networks
from nnunet_ext.networks.from_plan import adapted_topology
from tests.helpers.fresh_environment import build
from tests.helpers.golden import Golden
from tests.helpers.paths import ROOT
from tests.helpers.workspaces import NNUNetWorkspace


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


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A folder with an sdist of the checkout and the wheel built from it."""
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory):
    """Planned and preprocessed once; pytest's other processes copy it."""
    root = tmp_path_factory.mktemp("nnunet")
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = tmp_path_factory.getbasetemp().parent / "nnunet"
        with FileLock(shared.with_suffix(".lock")):
            if not shared.is_dir():
                NNUNetWorkspace(shared.with_suffix(".partial")).root.rename(shared)
        shutil.copytree(shared, root, dirs_exist_ok=True)
    return NNUNetWorkspace(root)


@pytest.fixture
def all_scans(tmp_path_factory):
    """Like `nnunet`, but with all shipped scans."""
    return NNUNetWorkspace(tmp_path_factory.mktemp("all_scans"), cases=24)


@pytest.fixture
def run_ranks(tmp_path):
    """Runs a script as the two ranks of a DDP training, its arguments the rank and a file to meet at."""

    def run(script: str, *arguments: str, environment: dict | None = None) -> list[str]:
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", script, str(rank), str(tmp_path / "store"), *arguments],
                cwd=ROOT,
                env=os.environ | (environment or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            outputs = []
            for process in processes:
                printed, error = process.communicate(timeout=300)
                assert process.returncode == 0, error[-3000:]
                outputs.append(printed)
            return outputs
        finally:
            for process in processes:  # a rank waits for ever for one that failed
                process.kill()

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
    """Writes one of our networks into a configuration's plan, as a user or a planner would."""

    def change(name: str, configuration: dict) -> None:
        arguments = configuration["architecture"]["arch_kwargs"]
        keys = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")
        topology = {key: arguments[key] for key in keys} | {"patch_size": configuration["patch_size"]}
        conv_op = topology["conv_op"]
        located = topology | {"conv_op": pydoc.locate(conv_op)}
        topology = adapted_topology(getattr(networks, name), located) | {"conv_op": conv_op}
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

    def make(name="SASANTrainer", configuration="3d_fullres_tiny", plans=None, dataset=None, device="cpu"):
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        plans = copy.deepcopy(plans or nnunet_environment.plans) | {"continue_training": False}
        trainer_class = recursive_find_trainer_class_by_name(name)
        trainer = trainer_class(
            plans, configuration, 0, dataset or nnunet_environment.dataset_json, torch.device(device)
        )
        trainer.initialize()
        trainer.network.train()
        return trainer

    return make


@pytest.fixture
def widths(nnunet):
    plans = nnunet.plans
    for name in ("3d_fullres_tiny", "2d_tiny"):
        arguments = plans["configurations"][name]["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [8, 8, 16, 16][: arguments["n_stages"]]
    return plans


@pytest.fixture
def make_model(make_trainer, widths, tmp_path):
    """A model's folder in the form of nnUNetv2_train's, with untrained weights."""

    def make(name="FAFNetFewShotTrainer", configuration="3d_fullres_tiny", folds=(0,), dataset=None, plans=None):
        plans = plans or widths
        for fold in folds:
            torch.manual_seed(fold)
            trainer = make_trainer(name, configuration, plans, dataset)
            folder = tmp_path / "models" / name
            (folder / f"fold_{fold}").mkdir(parents=True)
            trainer.save_checkpoint(str(folder / f"fold_{fold}" / "checkpoint_final.pth"))
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(trainer.dataset_json))
        return folder

    return make


@pytest.fixture
def small_disk(tmp_path):
    """Makes a folder on a disk of its own, a tmpfs of so many megabytes; skips where none can be mounted."""
    mounted = []

    def make(megabytes: float, name: str = "disk") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={round(megabytes * 1024)}k", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
        if done is None or done.returncode != 0:
            pytest.skip("needs to mount a tmpfs, as root may: " + (done.stderr.strip() if done else "no mount here"))
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only(small_disk):
    """Makes a folder and its content read-only, for root as well."""

    def make(content: Path | None = None, name: str = "read_only") -> Path:
        folder = small_disk(64, name)
        if content is not None:
            shutil.copytree(content, folder, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        return folder

    return make
