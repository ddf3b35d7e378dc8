"""The steps of a cross-validation: train, pool and compare, and the graph of all of them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunet_ext.crossval import completion
from nnunet_ext.crossval.ensemble import chosen_ensemble, ensemble_step
from nnunet_ext.crossval.experiment import Experiment, Model
from nnunet_ext.crossval.graph import Graph, Node
from nnunet_ext.crossval.machines import differ
from nnunet_ext.crossval.prediction import prediction_steps
from nnunet_ext.crossval.preparation import prepare
from nnunet_ext.nnunet.checkpoints import CHECKPOINTS


def build_graph(experiment: Experiment) -> Graph:
    """The graph of an experiment.

    Raises:
        ValueError: for a configuration that a plan lacks.
    """
    e = experiment
    nodes, prepared = prepare(e)
    previous: dict[Model, tuple[str, ...]] = dict.fromkeys(e.repeated_models, ())
    if e.previous_stage is not None:
        for fold in range(e.number_of_folds):
            for model in e.repeated_models:
                step = _train(e, model, fold, prepared[model.plans], configuration=e.previous_stage)
                previous[model] += (step.name,)
                nodes.append(step)
    for fold in e.folds:
        nodes += [_train(e, model, fold, prepared[model.plans] + previous[model]) for model in e.repeated_models]
    nodes += [_pool(e, model) for model in e.repeated_models]
    if len(e.models) > 1:
        nodes.append(_compare(e))
    if e.ensemble:
        nodes.append(ensemble_step(e, _pools(e, e.models)))
    predictions = prediction_steps(e) if e.test is not None else []
    nodes += predictions
    if len(e.models) > 1 and (e.ensemble or predictions):
        nodes.append(_report(e, tuple(node.name for node in predictions) or ("ensemble",)))
    return Graph(nodes)


def train_name(model: Model, fold: int, stage: str | None = None) -> str:
    """Name of a training's step; for a cascade's earlier stage it includes the stage."""
    return f"train_{model.name}_{fold}" if stage is None else f"train_{stage}_{model.name}_{fold}"


def _train(e: Experiment, model: Model, fold: int, needs: tuple[str, ...], configuration: str | None = None) -> Node:
    folder = e.fold_folder(model, fold, configuration)
    probabilities = e.ensemble and configuration is None and model.repeat == 1

    def command() -> list[str]:
        options = ["-tr", model.trainer, "-p", model.plans, "-device", e.device, *completion.resume_options(folder)]
        if e.num_gpus > 1:
            options += ["-num_gpus", str(e.num_gpus)]
        if probabilities:
            options.append("--npz")
        return ["nnUNetv2_train", e.dataset_id, configuration or e.configuration, str(fold), *options]

    def before() -> None:
        for name in CHECKPOINTS:
            completion.set_aside_broken(folder / name)

    name = train_name(model, fold, configuration)
    if configuration is None:
        state = partial(completion.training_state, folder, probabilities)
    else:
        state = partial(completion.stage_state, folder, e.configuration)
    return Node(
        name,
        needs,
        state,
        command,
        name.removesuffix(f"_{fold}"),
        on_gpu=True,
        before=before,
        fold=fold,
        fold_folder=folder,
        lock=e.locks / f"{folder.parent.name}__fold_{fold}.lock",
        progress=partial(completion.resume_progress, folder),
    )


def _pool(e: Experiment, model: Model) -> Node:
    command = ["nnUNetv2_accumulate_crossval_results", e.dataset_id, "-c", e.configuration, "-tr", model.trainer]
    command += ["-p", model.plans, "-f", *map(str, e.folds)]
    name = f"pool_{model.name}"
    return Node(
        name,
        tuple(train_name(model, fold) for fold in e.folds),
        partial(completion.pooling_state, e.pooled_folder(model), [e.fold_folder(model, fold) for fold in e.folds]),
        lambda: command,
        name,
        follows=True,
        lock=e.locks / f"{e.model_folder(model).name}__pool.lock",
    )


def _compare(e: Experiment) -> Node:
    lock = e.locks / f"{e.configuration}__compare.lock"
    needs = _pools(e, e.repeated_models)
    command = partial(_compare_command, e)
    return Node("compare", needs, partial(_compared, e), command, "compare", follows=True, lock=lock)


def _report(e: Experiment, needs: tuple[str, ...]) -> Node:
    """The same report once more, from the scores that were kept, with the ensemble and the masks of other scans."""

    predicted = [*(model.name for model in e.models), *(["ensemble"] if e.ensemble else [])]
    masks = {name: e.predictions(name) for name in predicted} if e.test is not None else {}

    def ensemble() -> Path | None:
        return chosen_ensemble(e) if e.ensemble else None

    def command() -> list[str]:
        options = _compare_command(e)
        if (folder := ensemble()) is not None:
            options += ["--ensemble", str(folder)]
        if masks:
            options += ["--masks", *(f"{name}={folder}" for name, folder in masks.items())]
        return options

    def read() -> completion.State:
        whole = completion.holds_beyond(e.report, ensemble(), list(masks))
        return _compared(e) if whole else completion.State.NOT_STARTED

    lock = e.locks / f"{e.configuration}__compare.lock"
    return Node("report", ("compare", *needs), read, command, "report", follows=True, lock=lock)


def _compared(e: Experiment) -> completion.State:
    # The report names trainers, with their plans only where these differ.
    names = [model.trainer if len(e.plans) == 1 else model.name for model in e.models]
    pooled = [e.pooled_folder(model) for model in e.repeated_models]
    return completion.report_state(e.report, names, [str(fold) for fold in e.folds], pooled, e.baseline)


def _compare_command(e: Experiment) -> list[str]:
    options = ["nnunet_ext", "compare", "-d", e.dataset_id, "-c", e.configuration, *e.model_options]
    for option, value in _report_options(e).items():
        if value is not None:
            options += [option, str(value)]
    trainings = [train_name(model, fold) for model in e.repeated_models for fold in e.folds]
    if e.untimed or differ(e, trainings):
        options.append("--untimed")
    return [*options, "-f", *map(str, e.folds), "-o", str(e.report)]


def _report_options(e: Experiment) -> dict[str, object]:
    return {
        "--baseline": e.baseline,
        "--margin": e.margin,
        "--tolerance": e.tolerance,
        "--groups": e.groups,
        "--repeats": e.repeats if e.repeats > 1 else None,
    }


def _pools(e: Experiment, models: Sequence[Model]) -> tuple[str, ...]:
    return tuple(f"pool_{model.name}" for model in models)
