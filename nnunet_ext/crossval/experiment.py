"""What a cross-validation is asked to do, and where nnU-Net keeps its parts."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from nnunet_ext.crossval.completion import file_ending, image_cases
from nnunet_ext.nnunet.trained_model import model_name, pair_plans
from nnunet_ext.nnunet.trainers import TRAINERS_VARIABLE, external_trainers, known_trainers

# nnU-Net's planners whose plans name is not the planner's option.
STOCK_PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}


@dataclass(frozen=True)
class Model:
    """A trainer on a plan."""

    trainer: str
    plans: str

    @property
    def name(self) -> str:
        return model_name(self.trainer, self.plans)


@dataclass(frozen=True)
class Experiment:
    """A cross-validation of several trainers; `make_experiment` checks it.

    Attributes:
        raw, preprocessed, results: The dataset's folder in each of nnU-Net's three.
        dataset: Its name, for example Dataset004_Hippocampus.
        configuration: For example 3d_fullres.
        models: Trainers and their plans.
        folds: Numbers of folds.
        report: Folder of the report and of predictions.
        device: cuda, cpu or mps.
        num_gpus: GPUs that train one fold together (nnU-Net's DDP).
        processes: Processes for fingerprint and preprocessing; None: nnU-Net's own number.
        baseline: The trainer that others are compared with; None: the report's own choice.
        ensemble: Whether the two best are ensembled.
        test: Folder with images to predict.
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

    @property
    def dataset_id(self) -> str:
        return str(int(self.dataset[len("Dataset") : len("Dataset") + 3]))

    @property
    def plans(self) -> tuple[str, ...]:
        """Names of plans, each once, nnU-Net's first: plans of ours share the data of what is there."""
        return tuple(sorted({model.plans: None for model in self.models}, key=lambda name: name not in STOCK_PLANNERS))

    @property
    def model_options(self) -> list[str]:
        """Trainers and plans as options."""
        plans = self.plans if len(self.plans) == 1 else [model.plans for model in self.models]
        return ["-tr", *(model.trainer for model in self.models), "-p", *plans]

    @property
    def bookkeeping(self) -> Path:
        """Folder of logs and job scripts."""
        return self.results / "crossval" / self.configuration

    def plans_file(self, plans: str) -> Path:
        return self.preprocessed / f"{plans}.json"

    def model_folder(self, model: Model) -> Path:
        return self.results / model_name(model.trainer, model.plans, self.configuration)

    def fold_folder(self, model: Model, fold: int) -> Path:
        return self.model_folder(model) / f"fold_{fold}"

    def pooled_folder(self, model: Model) -> Path:
        """Where nnUNetv2_accumulate_crossval_results writes."""
        return self.model_folder(model) / f"crossval_results_folds_{'_'.join(map(str, self.folds))}"

    def predictions(self, name: str) -> Path:
        return self.report / "predictions" / name

    def arguments(self) -> list[str]:
        """The options of `nnunet_ext crossval` that give this experiment."""
        options = ["-d", self.dataset_id, "-c", self.configuration, *self.model_options]
        options += ["--folds", *map(str, self.folds), "--device", self.device, "--num-gpus", str(self.num_gpus)]
        if self.processes is not None:
            options += ["-np", str(self.processes)]
        if self.baseline is not None:
            options += ["--baseline", self.baseline]
        if self.ensemble:
            options.append("--ensemble")
        if self.test is not None:
            options += ["--test", str(self.test)]
        return [*options, "-o", str(self.report)]


def make_experiment(
    dataset: str,
    configuration: str,
    trainers: Sequence[str],
    plans: Sequence[str] = ("nnUNetPlans",),
    folds: Sequence[int] = (0, 1, 2, 3, 4),
    report: str | Path = "report",
    device: str = "cuda",
    num_gpus: int = 1,
    processes: int | None = None,
    baseline: str | None = None,
    ensemble: bool = False,
    test: str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Experiment:
    """Checks what a user asked for before hours are spent on it.

    Args:
        dataset: Number or name of a dataset.
        plans: One name for all trainers, or one for each.
        environment: With nnU-Net's three folders; the rest as `Experiment`'s attributes.

    Raises:
        ValueError: for anything that cannot work, named.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        if not environment.get(name):
            raise ValueError(f"the environment variable {name} is not set; `nnunet_ext doctor` says more")
    name = _dataset_name(dataset)
    models = tuple(Model(trainer, plan) for trainer, plan in pair_plans(trainers, plans))
    for model in dict.fromkeys(models):
        if models.count(model) > 1:
            raise ValueError(f"{model.trainer} on {model.plans} is named twice")
    for trainer in trainers:
        _check_trainer(trainer, environment)
    if len(set(folds)) < len(folds) or min(folds) < 0:
        raise ValueError(f"--folds {' '.join(map(str, folds))}: must be different numbers from 0 on")
    if num_gpus < 1:
        raise ValueError(f"--num-gpus {num_gpus} must be at least 1")
    if num_gpus > 1 and device != "cuda":
        raise ValueError(f"--num-gpus {num_gpus}: nnU-Net trains on several devices with --device cuda only")
    if ensemble and len(models) < 2:
        raise ValueError("--ensemble needs at least two trainers")
    raw = Path(environment["nnUNet_raw"], name).resolve()
    preprocessed = Path(environment["nnUNet_preprocessed"], name).resolve()
    if test is not None:
        _check_images(Path(test), file_ending(raw, preprocessed))
    return Experiment(
        raw,
        preprocessed,
        Path(environment["nnUNet_results"], name).resolve(),
        name,
        configuration,
        models,
        tuple(folds),
        Path(report).resolve(),
        device,
        num_gpus,
        processes,
        baseline,
        ensemble,
        Path(test).resolve() if test is not None else None,
    )


def _check_images(folder: Path, ending: str) -> None:
    """Raises ValueError for a folder without images of a dataset's kind."""
    if not folder.is_dir():
        raise ValueError(f"--test {folder} is not a folder")
    if not image_cases(folder, ending):
        raise ValueError(f"--test {folder} has no images named as nnU-Net has them: CASE_0000{ending}")


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of nnU-Net's commands: this one, with our trainers among the external ones."""
    return {**environment, TRAINERS_VARIABLE: external_trainers(environment)}


def _dataset_name(dataset: str) -> str:
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    if not dataset.isdigit() and not re.match(r"Dataset\d{3}_", dataset):
        raise ValueError(f"-d {dataset} must be a number, for example 4, or a name such as Dataset004_Hippocampus")
    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except RuntimeError as error:
        raise ValueError(f"-d {dataset}: {error}") from error


def _check_trainer(trainer: str, environment: Mapping[str, str]) -> None:
    """Looks for the class's definition where nnU-Net would; importing all trainers as nnU-Net does takes seconds."""
    if trainer in known_trainers():
        return
    spec = util.find_spec("nnunetv2")
    packages = list(spec.submodule_search_locations or []) if spec is not None else []
    folders = [Path(package, "training", "nnUNetTrainer") for package in packages]
    folders += [Path(part) for part in environment.get("nnUNet_extTrainer", "").split(os.pathsep) if part.strip()]
    definition = re.compile(rf"^class {re.escape(trainer)}\b", re.M)
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            if definition.search(file.read_text(errors="replace")):
                return
    raise ValueError(
        f"unknown trainer {trainer!r}: neither nnU-Net's, nor in a folder of nnUNet_extTrainer, nor ours; ours: "
        + ", ".join(known_trainers())
    )
