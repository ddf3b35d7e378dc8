"""Checks of a whole call before anything starts: a mistake found after days is expensive."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ext.crossval.completion import data_identifier, file_ending, training_cases
from nnunet_ext.crossval.splits import divided_groups
from nnunet_ext.nnunet.dataset_json import check_consecutive, read_dataset_json
from nnunet_ext.nnunet.groups import read_groups
from nnunet_ext.nnunet.json_files import read_json_if_whole, read_splits
from nnunet_ext.nnunet.scans import scan_of, scans_in
from nnunet_ext.nnunet.trained_model import default_plans
from nnunet_ext.nnunet.trainers import can_plan, did_you_mean, known_trainers, trainer_folder
from nnunet_ext.utils.messages import some_of

if TYPE_CHECKING:
    from nnunet_ext.crossval.experiment import Experiment

# nnU-Net's planners by the names of their plans.
STOCK_PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}


def check_experiment(experiment: "Experiment", environment: Mapping[str, str]) -> None:
    """Raises ValueError for anything that cannot work; the message names it and the remedy."""
    _check_dataset(experiment)
    _check_models(experiment, environment)
    _check_split(experiment)
    _check_folds(experiment)
    _check_groups(experiment)
    _check_numbers(experiment)
    _check_report(experiment)
    for plans in experiment.plans:
        _check_plans(experiment, plans)
    if experiment.gpu_memory is not None and not any(
        _is_to_be_planned(experiment, plans) for plans in experiment.plans
    ):
        raise ValueError(
            f"--gpu-memory {experiment.gpu_memory:g} changes nothing: none of our trainers needs a new plan; to plan "
            "for another memory, give another plans name and --plan"
        )
    if experiment.test is not None:
        _check_images(
            experiment.test, file_ending(experiment.raw, experiment.preprocessed), experiment.raw / "imagesTr"
        )


def _check_dataset(e: "Experiment") -> None:
    """Raw data may be gone once all is preprocessed; nnU-Net's copy of dataset.json is then what counts."""
    raw, preprocessed = e.raw / "dataset.json", e.preprocessed / "dataset.json"
    if not raw.is_file() and not preprocessed.is_file():
        raise ValueError(f"-d {e.dataset_id}: {raw} is missing; it describes the dataset's labels, channels and files")
    path = raw if raw.is_file() else preprocessed
    content = read_dataset_json(path, "channel_names", "numTraining")
    check_consecutive(path, content)


def _check_split(e: "Experiment") -> None:
    """Checks that the split's cases exist, or that nnU-Net's default split can be made."""
    cases = training_cases(e.raw, e.preprocessed)
    if read_json_if_whole(e.splits_file) is None:  # a damaged file is set aside when the step begins
        if 0 < len(cases) < e.number_of_folds:
            raise ValueError(
                f"{len(cases)} training case(s) cannot be divided into nnU-Net's {e.number_of_folds} folds: add cases, "
                f"or write {e.splits_file} with folds of your own"
            )
        return
    splits = read_splits(e.splits_file)
    named = {case for split in splits for part in ("train", "val") for case in split[part]}
    if cases and (unknown := sorted(named - set(cases))):
        raise ValueError(
            f"{e.splits_file} names {some_of(unknown)}, which are not among the dataset's {len(cases)} training cases: "
            "correct it, or remove it and nnU-Net's default split is made"
        )


def _check_models(e: "Experiment", environment: Mapping[str, str]) -> None:
    for model in dict.fromkeys(e.models):
        if e.models.count(model) > 1:
            raise ValueError(f"{model.trainer} on {model.plans} is named twice; --repeats trains it several times")
    for model in e.models:
        _check_trainer(model.trainer, environment)
    if e.ensemble and len(e.models) < 2:
        raise ValueError("--ensemble needs at least two trainers")
    known = [name for model in e.models for name in (model.trainer, model.name)]
    if e.baseline is not None and e.baseline not in known:
        trainers = ", ".join(dict.fromkeys(model.trainer for model in e.models))
        raise ValueError(f"--baseline {e.baseline} is not among the trainers; take one of {trainers}, or add it to -tr")


def _check_folds(e: "Experiment") -> None:
    given = " ".join(map(str, e.folds))
    if not e.folds or len(set(e.folds)) < len(e.folds) or min(e.folds) < 0:
        raise ValueError(f"--folds {given}: must be different numbers from 0 on")
    last = e.number_of_folds - 1
    if max(e.folds) > last:
        where = e.splits_file if e.splits_file.is_file() else "nnU-Net's default split"
        raise ValueError(
            f"--folds {given}: {where} has the folds 0 to {last}; nnU-Net would train fold {max(e.folds)} on a random "
            f"split. Leave it out, or write a splits_final.json with {max(e.folds) + 1} folds"
        )


def _check_groups(e: "Experiment") -> None:
    if e.groups is None:
        return
    groups = read_groups(e.groups, training_cases(e.raw, e.preprocessed))
    number = len(set(groups.values()))
    splits = read_json_if_whole(e.splits_file)
    if splits is None and number < e.number_of_folds:
        raise ValueError(f"--groups {e.groups}: {number} group(s) cannot be divided among {e.number_of_folds} folds")
    if found := divided_groups(splits or [], groups):
        fold, group = found[0]
        raise ValueError(
            f"--groups {e.groups}: fold {fold} of {e.splits_file} trains and validates on group {group}; move that "
            "file and the models trained on it away, so that a split by group is written, or name other groups"
        )


def _check_numbers(e: "Experiment") -> None:
    for option, number in (("--num-gpus", e.num_gpus), ("--repeats", e.repeats), ("-np", e.processes)):
        if number is not None and number < 1:
            raise ValueError(f"{option} {number} must be at least 1")
    for option, amount in (("--gpu-memory", e.gpu_memory), ("--margin", e.margin), ("--tolerance", e.tolerance)):
        if amount is not None and not amount > 0:
            raise ValueError(f"{option} {amount:g} must be above 0")
    if e.num_gpus > 1 and e.device != "cuda":
        raise ValueError(f"--num-gpus {e.num_gpus}: nnU-Net trains on several devices with --device cuda only")


def _check_report(e: "Experiment") -> None:
    if len(e.models) > 1:
        return
    given = {"--margin": e.margin is not None, "--tolerance": e.tolerance is not None, "--untimed": e.untimed}
    for option in (option for option, is_given in given.items() if is_given):
        raise ValueError(
            f"{option} is an option of the report, which compares at least two trainers; name them with -tr"
        )


def _is_to_be_planned(e: "Experiment", plans: str) -> bool:
    """Whether our planner must make a plan."""
    return plans not in STOCK_PLANNERS and read_json_if_whole(e.plans_file(plans)) is None


def _check_plans(e: "Experiment", plans: str) -> None:
    file = e.plans_file(plans)
    data_identifier(file, e.configuration)  # complains of an unknown configuration
    content = read_json_if_whole(file)
    if content is None:
        _check_new_plans(e, plans)
    elif content["plans_name"] != plans:  # nnU-Net would train into the other's folder
        raise ValueError(f"plans_name in {file} is {content['plans_name']!r}; it must be {plans!r}, as the file's name")


def _check_new_plans(e: "Experiment", plans: str) -> None:
    if plans in STOCK_PLANNERS:
        return
    trainers = [model.trainer for model in e.models if model.plans == plans]
    ours = [trainer for trainer in trainers if can_plan(trainer)]
    if ours and (e.plan or plans in map(default_plans, ours)):
        return
    written = sorted(file.stem for file in e.preprocessed.glob("*Plans*.json"))
    known = list(dict.fromkeys([*written, *map(default_plans, ours), *STOCK_PLANNERS]))
    close = difflib.get_close_matches(plans, known, 1)
    meant = f"did you mean {close[0]}? Known" if close else "known"
    remedy = (
        f"to plan for {ours[0]} under this name, add --plan"
        if ours
        else f"to write it: nnunet_ext plan -d {e.dataset_id} -tr {trainers[0]} --plans-name {plans}"
    )
    raise ValueError(f"-p {plans}: there is no {e.plans_file(plans)}; {meant}: {', '.join(known)}; {remedy}")


def _check_images(folder: Path, ending: str, training_images: Path) -> None:
    """Checks names and channels; whether the images can be read is seen when they are predicted."""
    if not folder.is_dir():
        raise ValueError(f"--test {folder} is not a folder")
    try:
        scans, failures = scans_in(folder, [ending])
    except ValueError as error:
        raise ValueError(f"--test: {error}; images are named CASE_0000{ending}, as nnU-Net has them") from error
    if failures:
        raise ValueError(f"--test {folder}: {failures[0].case} {failures[0].reason}")
    if hidden := sorted(file.name for file in folder.glob(f".*{ending}")):
        raise ValueError(
            f"--test {folder} has hidden files that nnUNetv2_predict would take for scans, {some_of(hidden)}: "
            "remove them"
        )
    expected = _files_of_a_case(training_images, ending)
    wrong = [f"{scan.case} ({len(scan.files)})" for scan in scans if expected not in (None, len(scan.files))]
    if wrong:
        raise ValueError(
            f"--test {folder}: a case of this dataset has {expected} file(s), one per channel; not so {some_of(wrong)}"
        )


def _files_of_a_case(training_images: Path, ending: str) -> int | None:
    """Number of files of the first training case: a file in colour holds several channels."""
    if not training_images.is_dir():
        return None
    first = next(iter(sorted(training_images.glob(f"[!.]*_0000{ending}"))), None)
    if first is None:
        return None
    return len(scan_of(first, [ending]).files)


def _check_trainer(trainer: str, environment: Mapping[str, str]) -> None:
    """Looks for the class's definition where nnU-Net would."""
    if trainer_folder(trainer, environment) is not None:
        return
    raise ValueError(
        f"unknown trainer {trainer!r}: neither nnU-Net's, nor in a folder of nnUNet_extTrainer, nor ours; "
        f"{did_you_mean(trainer)}ours: " + ", ".join(known_trainers())
    )
