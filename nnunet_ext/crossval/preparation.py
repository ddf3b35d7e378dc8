"""The steps before the trainings: fingerprint, plans, preprocessing, and the split with unpacked data."""

import sys
from functools import partial
from pathlib import Path

from nnunet_ext.crossval import completion
from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.graph import PREPARE, Node
from nnunet_ext.crossval.preprocess import is_resumable, note_plan, whole_cases
from nnunet_ext.crossval.validation import STOCK_PLANNERS
from nnunet_ext.nnunet.trained_model import repeat_plans
from nnunet_ext.nnunet.trainers import can_plan

LOCK = ".nnunet_ext_preparation.lock"
"""Lock in the dataset's preprocessed folder. It covers fingerprint, plans and splits: one run at a time prepares."""


def prepare(e: Experiment) -> tuple[list[Node], dict[str, tuple[str, ...]]]:
    """The steps of an experiment before its trainings.

    Returns:
        The steps, and for each plans name the steps that its trainings need. Every one is named, because a finished
        step does not ask for its dependencies and a training reads the results of all.
    """
    configurations = [e.configuration] if e.previous_stage is None else [e.previous_stage, e.configuration]
    nodes = [_fingerprint(e), *(_plan(e, plans) for plans in e.plans)]
    prepared: dict[str, tuple[str, ...]] = {}
    first: dict[tuple[str, str], tuple[str, ...]] = {}
    for plans in e.plans:
        own: tuple[str, ...] = ("fingerprint", f"plan_{plans}")
        for configuration in configurations:
            identifier = completion.data_identifier(e.plans_file(plans), configuration)
            key = (identifier, "") if identifier is not None else (plans, configuration)
            if key not in first:
                steps = [_preprocess(e, plans, configuration), _unpack(e, plans, configuration)]
                first[key] = tuple(step.name for step in steps)
                nodes += steps
            own += first[key]
        prepared[plans] = own
        for repeat in range(2, e.repeats + 1):
            nodes.append(_repeat_plan(e, plans, repeat))
            prepared[repeat_plans(plans, repeat)] = (*own, nodes[-1].name)
    return nodes, prepared


def _fingerprint(e: Experiment) -> Node:
    file = e.preprocessed / "dataset_fingerprint.json"
    command = ["nnUNetv2_extract_fingerprint", "-d", e.dataset_id, "--verify_dataset_integrity", *_processes(e)]
    return Node(
        "fingerprint",
        (),
        partial(completion.json_state, file),
        lambda: command,
        PREPARE,
        before=partial(completion.set_aside_broken, file),
        lock=e.preprocessed / LOCK,
    )


def _plan(e: Experiment, plans: str) -> Node:
    file = e.plans_file(plans)
    trainer = next(model.trainer for model in e.models if model.plans == plans)
    command: list[str] = []  # a user's own plan, which validation.py has found
    if plans in STOCK_PLANNERS:
        command = ["nnUNetv2_plan_experiment", "-d", e.dataset_id, "-pl", STOCK_PLANNERS[plans]]
    else:
        ours = [m.trainer for m in e.models if m.plans == plans and can_plan(m.trainer)]
        if ours:
            trainer = ours[0]
            command = ["nnunet_ext", "plan", "-d", e.dataset_id, "-tr", trainer, "--plans-name", plans]
            if e.gpu_memory is not None:
                command += ["--gpu-memory", f"{e.gpu_memory:g}"]
    stock = () if plans in STOCK_PLANNERS else tuple(f"plan_{name}" for name in e.plans if name in STOCK_PLANNERS)
    return Node(
        f"plan_{plans}",
        ("fingerprint", *stock),
        partial(completion.json_state, file),
        lambda: command,
        PREPARE,
        before=partial(completion.set_aside_broken, file),
        lock=e.preprocessed / LOCK,
    )


def _repeat_plan(e: Experiment, plans: str, repeat: int) -> Node:
    source, target = e.plans_file(plans), e.plans_file(repeat_plans(plans, repeat))
    command = [sys.executable, "-m", "nnunet_ext.crossval.repeat_plan", str(source), str(target)]
    return Node(
        f"plan_{target.stem}",
        (f"plan_{plans}",),
        partial(completion.copy_state, target, source),
        lambda: command,
        PREPARE,
        before=partial(completion.set_aside_broken, target),
        lock=e.preprocessed / LOCK,
    )


def _data_folder(e: Experiment, plans: str, configuration: str) -> Path | None:
    identifier = completion.data_identifier(e.plans_file(plans), configuration)
    return e.preprocessed / identifier if identifier is not None else None


def _preprocess(e: Experiment, plans: str, configuration: str) -> Node:
    file = e.plans_file(plans)

    def read() -> State:
        folder = _data_folder(e, plans, configuration)
        if folder is None:
            return State.NOT_STARTED
        cases, ending = completion.training_cases(e.raw, e.preprocessed), completion.file_ending(e.raw, e.preprocessed)
        return completion.preprocessing_state(folder, cases, e.preprocessed / "gt_segmentations", ending)

    def command() -> list[str]:
        options = ["-d", e.dataset_id, "-plans_name", plans, "-c", configuration, *_processes(e)]
        folder = _data_folder(e, plans, configuration)
        if folder is not None and is_resumable(file, configuration, folder):
            return [sys.executable, "-m", "nnunet_ext.crossval.preprocess", *options]
        return ["nnUNetv2_preprocess", *options]

    def before() -> None:
        folder = _data_folder(e, plans, configuration)
        if folder is not None and not is_resumable(file, configuration, folder):
            note_plan(file, configuration, folder)

    def progress() -> int:
        folder = _data_folder(e, plans, configuration)
        return 0 if folder is None else len(whole_cases(folder))

    return Node(
        _name("preprocess", e, plans, configuration),
        (f"plan_{plans}",),
        read,
        command,
        PREPARE,
        before=before,
        lock=e.preprocessed / LOCK,
        progress=progress,
    )


def _unpack(e: Experiment, plans: str, configuration: str) -> Node:
    def read() -> State:
        folder = _data_folder(e, plans, configuration)
        return State.NOT_STARTED if folder is None else completion.unpacking_state(folder, e.splits_file)

    def command() -> list[str]:
        folder = str(_data_folder(e, plans, configuration) or e.preprocessed)
        groups = [] if e.groups is None else ["--groups", e.groups]
        return [sys.executable, "-m", "nnunet_ext.crossval.unpack", folder, *groups]

    return Node(
        _name("unpack", e, plans, configuration),
        (_name("preprocess", e, plans, configuration),),
        read,
        command,
        PREPARE,
        before=partial(completion.set_aside_broken, e.splits_file),
        lock=e.preprocessed / LOCK,
        progress=lambda: _unpacked(_data_folder(e, plans, configuration)),
    )


def _unpacked(folder: Path | None) -> int:
    return 0 if folder is None else len(list(folder.glob("*.npy")))


def _name(what: str, e: Experiment, plans: str, configuration: str) -> str:
    """Name of a step; for a cascade's earlier stage it includes the configuration."""
    return f"{what}_{plans}" if configuration == e.configuration else f"{what}_{configuration}_{plans}"


def _processes(e: Experiment) -> list[str]:
    return [] if e.processes is None else ["-np", str(e.processes)]
