"""The parts of a cross-validation: plan, preprocess, unpack, train, pool, compare, on request ensemble and predict."""

import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nnunet_ext.crossval import completion
from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.ensemble import best_two, ensemble_state
from nnunet_ext.crossval.experiment import STOCK_PLANNERS, Experiment, Model
from nnunet_ext.crossval.graph import PREPARE, Graph, Node
from nnunet_ext.nnunet.checkpoints import CHECKPOINTS, FINAL_CHECKPOINT
from nnunet_ext.nnunet.json_files import read_json_if_whole
from nnunet_ext.nnunet.trainers import known_trainers


def build_graph(experiment: Experiment) -> Graph:
    """The graph of an experiment.

    Raises:
        ValueError: for a configuration that a plan lacks, a plan that nothing can write, and a cascade.
    """
    nodes = [_fingerprint(experiment), *(_plan(experiment, plans) for plans in experiment.plans)]
    prepared: dict[str, tuple[str, ...]] = {}
    for plans in experiment.plans:
        _check_plan(experiment, plans)
        first = _shares_data_with(experiment, plans)
        if first == plans:
            nodes += [_preprocess(experiment, plans), _unpack(experiment, plans)]
        # All by name: what is finished does not ask for what it was made of, and a training reads every one of them.
        prepared[plans] = ("fingerprint", f"plan_{plans}", f"preprocess_{first}", f"unpack_{first}")
    for fold in experiment.folds:
        nodes += [_train(experiment, model, fold, prepared[model.plans]) for model in experiment.models]
    nodes += [_pool(experiment, model) for model in experiment.models]
    if len(experiment.models) > 1:
        nodes.append(_compare(experiment))
    if experiment.ensemble:
        nodes.append(_ensemble(experiment))
    if experiment.test is not None:
        nodes += [_predict(experiment, model) for model in experiment.models]
        if experiment.ensemble:
            nodes.append(_predict_ensemble(experiment))
    return Graph(nodes)


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
    )


def _plan(e: Experiment, plans: str) -> Node:
    file = e.plans_file(plans)
    trainer = next(model.trainer for model in e.models if model.plans == plans)
    if plans in STOCK_PLANNERS:
        command = ["nnUNetv2_plan_experiment", "-d", e.dataset_id, "-pl", STOCK_PLANNERS[plans]]
    elif trainer in known_trainers():
        command = ["nnunet_ext", "plan", "-d", e.dataset_id, "-tr", trainer, "--plans-name", plans]
    elif read_json_if_whole(file) is not None:
        command = []  # a plan of the user's own, always finished
    else:
        write = f"nnunet_ext plan -d {e.dataset_id} -tr {trainer} --plans-name {plans}"
        raise ValueError(
            f"-p {plans}: there is no {file}; write it, for example by `{write}`, or take one of "
            + ", ".join(STOCK_PLANNERS)
        )
    before = () if plans in STOCK_PLANNERS else tuple(f"plan_{name}" for name in e.plans if name in STOCK_PLANNERS)
    return Node(
        f"plan_{plans}",
        ("fingerprint", *before),
        partial(completion.json_state, file),
        lambda: command,
        PREPARE,
        before=partial(completion.set_aside_broken, file),
    )


def _check_plan(e: Experiment, plans: str) -> None:
    file = e.plans_file(plans)
    completion.data_identifier(file, e.configuration)  # complains of an unknown configuration
    plan = read_json_if_whole(file) or {"plans_name": plans, "configurations": {}}
    if plan["plans_name"] != plans:  # nnU-Net would train into the other's folder
        raise ValueError(f"plans_name in {file} is {plan['plans_name']!r}; it must be {plans!r}, as the file's name")
    if e.configuration == "3d_cascade_fullres" or "previous_stage" in plan["configurations"].get(e.configuration, {}):
        raise ValueError(
            f"-c {e.configuration} goes on from the predictions of another configuration, of all folds; train it by "
            "nnU-Net's commands, then use `nnunet_ext compare`"
        )


def _shares_data_with(e: Experiment, plans: str) -> str:
    """The first of the plans with the same preprocessed data; where a plan is not written yet, itself."""
    own = completion.data_identifier(e.plans_file(plans), e.configuration)
    if own is None:
        return plans
    return next(p for p in e.plans if completion.data_identifier(e.plans_file(p), e.configuration) == own)


def _data_folder(e: Experiment, plans: str) -> Path | None:
    identifier = completion.data_identifier(e.plans_file(plans), e.configuration)
    return e.preprocessed / identifier if identifier is not None else None


def _preprocess(e: Experiment, plans: str) -> Node:
    def read() -> State:
        folder = _data_folder(e, plans)
        if folder is None:
            return State.NOT_STARTED
        cases, ending = completion.training_cases(e.raw, e.preprocessed), completion.file_ending(e.raw, e.preprocessed)
        return completion.preprocessing_state(folder, cases, e.preprocessed / "gt_segmentations", ending)

    command = ["nnUNetv2_preprocess", "-d", e.dataset_id, "-plans_name", plans, "-c", e.configuration, *_processes(e)]
    return Node(f"preprocess_{plans}", (f"plan_{plans}",), read, lambda: command, PREPARE)


def _unpack(e: Experiment, plans: str) -> Node:
    splits = e.preprocessed / "splits_final.json"

    def read() -> State:
        folder = _data_folder(e, plans)
        return State.NOT_STARTED if folder is None else completion.unpacking_state(folder, splits)

    def command() -> list[str]:
        return [sys.executable, "-m", "nnunet_ext.crossval.unpack", str(_data_folder(e, plans) or e.preprocessed)]

    return Node(
        f"unpack_{plans}",
        (f"preprocess_{plans}",),
        read,
        command,
        PREPARE,
        before=partial(completion.set_aside_broken, splits),
    )


def _train(e: Experiment, model: Model, fold: int, prepared: tuple[str, ...]) -> Node:
    folder = e.fold_folder(model, fold)

    def command() -> list[str]:
        options = ["-tr", model.trainer, "-p", model.plans, "-device", e.device, *completion.resume_options(folder)]
        if e.num_gpus > 1:
            options += ["-num_gpus", str(e.num_gpus)]
        if e.ensemble:
            options.append("--npz")
        return ["nnUNetv2_train", e.dataset_id, e.configuration, str(fold), *options]

    def before() -> None:
        for name in CHECKPOINTS:
            completion.set_aside_broken(folder / name)

    return Node(
        f"train_{model.name}_{fold}",
        prepared,
        partial(completion.training_state, folder, e.ensemble),
        command,
        f"train_{model.name}",
        on_gpu=True,
        before=before,
        fold=fold,
        fold_folder=folder,
    )


def _pool(e: Experiment, model: Model) -> Node:
    command = ["nnUNetv2_accumulate_crossval_results", e.dataset_id, "-c", e.configuration, "-tr", model.trainer]
    command += ["-p", model.plans, "-f", *map(str, e.folds)]
    name = f"pool_{model.name}"
    return Node(
        name,
        tuple(f"train_{model.name}_{fold}" for fold in e.folds),
        partial(completion.pooling_state, e.pooled_folder(model), [e.fold_folder(model, fold) for fold in e.folds]),
        lambda: command,
        name,
        follows=True,
    )


def _compare(e: Experiment) -> Node:
    command = ["nnunet_ext", "compare", "-d", e.dataset_id, "-c", e.configuration, *e.model_options]
    if e.baseline is not None:
        command += ["--baseline", e.baseline]
    command += ["-f", *map(str, e.folds), "-o", str(e.report)]
    # The report names trainers, with their plans only where these differ.
    names = [model.trainer if len(e.plans) == 1 else model.name for model in e.models]
    pooled = [e.pooled_folder(model) for model in e.models]
    read = partial(completion.report_state, e.report, names, [str(fold) for fold in e.folds], pooled, e.baseline)
    return Node("compare", _pools(e), read, lambda: command, "compare", follows=True)


def _ensemble(e: Experiment) -> Node:
    models = [model.name for model in e.models]
    command = [sys.executable, "-m", "nnunet_ext.crossval.ensemble", e.dataset, e.configuration, "--models", *models]
    command += ["--folds", *map(str, e.folds)]
    return Node("ensemble", _pools(e), partial(ensemble_state, e), lambda: command, "ensemble", follows=True)


def _pools(e: Experiment) -> tuple[str, ...]:
    return tuple(f"pool_{model.name}" for model in e.models)


def _predict(e: Experiment, model: Model) -> Node:
    command = ["nnUNetv2_predict", "-i", str(e.test), "-o", str(_partial(e.predictions(model.name)))]
    command += ["-d", e.dataset_id, "-c", e.configuration, "-tr", model.trainer, "-p", model.plans]
    command += ["-f", *map(str, e.folds), "-device", e.device]
    if e.ensemble:
        command.append("--save_probabilities")
    checkpoints = [e.fold_folder(model, fold) / FINAL_CHECKPOINT for fold in e.folds]
    trainings = tuple(f"train_{model.name}_{fold}" for fold in e.folds)
    return _predicting(e, model.name, trainings, lambda: command, lambda: checkpoints, on_gpu=True)


def _predict_ensemble(e: Experiment) -> Node:
    def members() -> list[Path]:
        """Predictions of the two best; their names are not known before."""
        best = best_two(e)
        return [e.predictions(name) for name in (("BEST", "SECOND") if best is None else [m.name for m in best])]

    def command() -> list[str]:
        return ["nnUNetv2_ensemble", "-i", *map(str, members()), "-o", str(_partial(e.predictions("ensemble")))]

    def sources() -> list[Path]:
        return [folder / "predict_from_raw_data_args.json" for folder in members()]

    needs = ("ensemble", *(f"predict_{model.name}" for model in e.models))
    return _predicting(e, "ensemble", needs, command, sources)


def _predicting(
    e: Experiment,
    name: str,
    needs: tuple[str, ...],
    command: Callable[[], list[str]],
    sources: Callable[[], Sequence[Path]],
    on_gpu: bool = False,
) -> Node:
    """Predictions appear under their name when all are there."""
    assert e.test is not None
    target, images = e.predictions(name), e.test

    def read() -> State:
        ending = completion.file_ending(e.raw, e.preprocessed)
        return completion.prediction_state(target, completion.image_cases(images, ending), ending, sources())

    def before() -> None:
        shutil.rmtree(_partial(target), ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)

    def after() -> None:
        shutil.rmtree(target, ignore_errors=True)
        _partial(target).rename(target)

    group = f"predict_{name}"
    return Node(group, needs, read, command, group, on_gpu, follows=True, before=before, after=after)


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _processes(e: Experiment) -> list[str]:
    return [] if e.processes is None else ["-np", str(e.processes)]
