import copy
import json
import os
import shutil
from pathlib import Path

import pytest

from nnunet_ext.crossval.experiment import make_experiment
from nnunet_ext.crossval.steps import build_graph

BUDGET = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "1", "NNUNET_EXT_VAL_ITERATIONS": "1"}


class Space:
    """nnU-Net's folders of a test's own, planned and preprocessed."""

    dataset = "Dataset004_Hippocampus"

    def __init__(self, nnunet, root: Path) -> None:
        self.nnunet, self.root, self.report = nnunet, root, root / "report"
        self.raw, self.preprocessed, self.results = (
            root / name / self.dataset for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        )
        shutil.copytree(nnunet.raw, self.raw)
        shutil.copytree(nnunet.preprocessed, self.preprocessed)
        self.results.mkdir(parents=True)
        folders = {folder.parent.name: str(folder.parent) for folder in (self.raw, self.preprocessed, self.results)}
        self.environment = nnunet.environment | folders | BUDGET
        self._add_configuration()

    def _add_configuration(self) -> None:
        """A tiny network that sees a slice at once, so that validation takes a second."""
        file = self.preprocessed / "nnUNetPlans.json"
        plans = json.loads(file.read_text())
        configurations = plans["configurations"]
        configurations["2d_small"] = configurations["2d_tiny"] | {"patch_size": configurations["2d"]["patch_size"]}
        file.write_text(json.dumps(plans))

    @property
    def bookkeeping(self) -> Path:
        return self.results / "crossval" / "2d_small"

    def experiment(self, trainers=("StockTrainer", "SASANTrainer"), configuration="2d_small", **options):
        defaults = {"folds": (0, 1), "report": self.report, "device": "cpu", "environment": self.environment}
        return make_experiment("4", configuration, trainers, **defaults | options)

    def graph(self, *arguments, **options):
        return build_graph(self.experiment(*arguments, **options))

    def options(self, *further, trainers=("StockTrainer", "SASANTrainer"), folds=("0", "1"), configuration="2d_small"):
        return [
            *("crossval", "-d", "4", "-c", configuration, "-tr", *trainers, "--folds", *folds),
            *("--device", "cpu", "-o", str(self.report), *further),
        ]

    def crossval(self, *further, environment=None, **options):
        here = copy.copy(self.nnunet)
        here.root, here.environment = self.root, self.environment
        return here.attempt("nnunet_ext", *self.options(*further, **options), **environment or {})


@pytest.fixture
def space(nnunet, tmp_path, monkeypatch):
    space = Space(nnunet, tmp_path / "a space")
    for name, value in space.environment.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    return space
