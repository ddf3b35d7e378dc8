"""The settings of a cross-validation, and where nnU-Net keeps its results."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_ext.crossval.validation import STOCK_PLANNERS, check_experiment
from nnunet_ext.nnunet.datasets import dataset_name
from nnunet_ext.nnunet.json_files import read_json_if_whole
from nnunet_ext.nnunet.trained_model import model_name, pair_plans, repeat_plans
from nnunet_ext.nnunet.trainers import TRAINERS_VARIABLE, external_trainers

DEFAULT_FOLDS = 5  # in nnU-Net's default split


@dataclass(frozen=True)
class Model:
    """A trainer on a plan.

    Attributes:
        trainer: Name of the trainer's class.
        plans: Name of the plans; a repeated training has a copy of them under a name of its own.
        repeat: Number of the repeated training, from 1.
    """

    trainer: str
    plans: str
    repeat: int = 1

    @property
    def name(self) -> str:
        return model_name(self.trainer, self.plans)


@dataclass(frozen=True)
class Experiment:
    """A cross-validation of several trainers; `make_experiment` checks it.

    Attributes:
        raw, preprocessed, results: The dataset's folder in each of nnU-Net's three.
        dataset: Name of the dataset, for example Dataset004_Hippocampus.
        configuration: For example 3d_fullres.
        models: Trainers and their plans.
        folds: Numbers of folds.
        report: Folder of the report and of predictions.
        device: cuda, cpu or mps.
        num_gpus: GPUs that train one fold together (nnU-Net's DDP).
        processes: Processes for fingerprint and preprocessing; None: nnU-Net's own number.
        baseline: Trainer that the others are compared with; None: the report's own choice.
        ensemble: Whether the two best are ensembled.
        test: Folder with images to predict.
        repeats: Trainings of each model, which differ in their random numbers only.
        groups: Source of the cases' groups (patients, for example), which no fold may divide.
        margin: Dice points within which the report calls trainers equivalent; None: the report's default.
        tolerance: Tolerance of the surface Dice in mm; None: the report's default.
        untimed: Whether the report always leaves out seconds.
        gpu_memory: GB for which plans of our trainers are made; None: the planner's default.
        plan: Whether a plan may be made under a name that is not a trainer's default.
    """

    raw: Path
    preprocessed: Path
    results: Path
    dataset: str
    configuration: str
    models: tuple[Model, ...]
    folds: tuple[int, ...]
    report: Path
    device: str = "cuda"
    num_gpus: int = 1
    processes: int | None = None
    baseline: str | None = None
    ensemble: bool = False
    test: Path | None = None
    repeats: int = 1
    groups: str | None = None
    margin: float | None = None
    tolerance: float | None = None
    untimed: bool = False
    gpu_memory: float | None = None
    plan: bool = False

    @property
    def dataset_id(self) -> str:
        return str(int(self.dataset[len("Dataset") : len("Dataset") + 3]))

    @property
    def plans(self) -> tuple[str, ...]:
        """Names of plans, each once, nnU-Net's first: our plans share preprocessed data that exist."""
        return tuple(sorted({model.plans: None for model in self.models}, key=lambda name: name not in STOCK_PLANNERS))

    @property
    def repeated_models(self) -> tuple[Model, ...]:
        """Every model of every repeat, the first repeat of all models first."""
        return tuple(
            Model(model.trainer, repeat_plans(model.plans, repeat), repeat)
            for repeat in range(1, self.repeats + 1)
            for model in self.models
        )

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose predictions this one refines, in a cascade."""
        for plans in self.plans:
            content = read_json_if_whole(self.plans_file(plans)) or {"configurations": {}}
            found = content["configurations"].get(self.configuration, {}).get("previous_stage")
            if found is not None:
                return str(found)
        return "3d_lowres" if self.configuration == "3d_cascade_fullres" else None

    @property
    def number_of_folds(self) -> int:
        """Folds of the dataset's split, or of nnU-Net's default one before it is written."""
        splits = read_json_if_whole(self.splits_file)
        return len(splits) if isinstance(splits, list) else DEFAULT_FOLDS

    @property
    def model_options(self) -> list[str]:
        """Trainers and plans as options."""
        plans = self.plans if len(self.plans) == 1 else [model.plans for model in self.models]
        return ["-tr", *(model.trainer for model in self.models), "-p", *plans]

    @property
    def bookkeeping(self) -> Path:
        """Folder of logs and jobs."""
        return self.results / "crossval" / self.configuration

    @property
    def locks(self) -> Path:
        """Folder of the locks of trainings and of later steps."""
        return self.results / "crossval" / "locks"

    @property
    def splits_file(self) -> Path:
        return self.preprocessed / "splits_final.json"

    def plans_file(self, plans: str) -> Path:
        return self.preprocessed / f"{plans}.json"

    def model_folder(self, model: Model, configuration: str | None = None) -> Path:
        return self.results / model_name(model.trainer, model.plans, configuration or self.configuration)

    def fold_folder(self, model: Model, fold: int, configuration: str | None = None) -> Path:
        return self.model_folder(model, configuration) / f"fold_{fold}"

    def pooled_folder(self, model: Model) -> Path:
        """Folder to which nnUNetv2_accumulate_crossval_results writes."""
        return self.model_folder(model) / f"crossval_results_folds_{'_'.join(map(str, self.folds))}"

    def predictions(self, name: str) -> Path:
        return self.report / "predictions" / name


def make_experiment(
    dataset: str,
    configuration: str,
    trainers: Sequence[str],
    *,
    plans: Sequence[str] = ("nnUNetPlans",),
    folds: Sequence[int] | None = None,
    report: str | Path = "report",
    test: str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
    **options: Any,
) -> Experiment:
    """Makes an experiment and checks it before hours are spent on it.

    Args:
        dataset: Number or name of a dataset.
        configuration: Name of a configuration.
        trainers: Names of trainers.
        plans: One name for all trainers, or one for each.
        folds: Numbers of folds; None: all of the dataset's split.
        report: Folder of the report.
        test: Folder with images to predict.
        environment: Holds nnU-Net's three folders.
        **options: The other attributes of `Experiment`.

    Raises:
        ValueError: for settings that cannot work; the message names them and the remedy.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        if not environment.get(name):
            raise ValueError(f"the environment variable {name} is not set; for details run `nnunet_ext doctor`")
    name = dataset_name(dataset)
    if options.get("groups") is not None and Path(options["groups"]).is_file():
        options["groups"] = str(Path(options["groups"]).resolve())  # jobs run in other folders
    experiment = Experiment(
        raw=Path(environment["nnUNet_raw"], name).resolve(),
        preprocessed=Path(environment["nnUNet_preprocessed"], name).resolve(),
        results=Path(environment["nnUNet_results"], name).resolve(),
        dataset=name,
        configuration=configuration,
        models=tuple(Model(trainer, plan) for trainer, plan in pair_plans(trainers, plans)),
        folds=(),
        report=Path(report).resolve(),
        test=Path(test).resolve() if test is not None else None,
        **options,
    )
    chosen = tuple(range(experiment.number_of_folds)) if folds is None else tuple(folds)
    experiment = replace(experiment, folds=chosen)
    check_experiment(experiment, environment)
    return experiment


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of nnU-Net's commands: this one, with our trainers among the external ones."""
    return {**environment, TRAINERS_VARIABLE: external_trainers(environment)}
