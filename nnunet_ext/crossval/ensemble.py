"""The two best trainers of a cross-validation, ensembled by nnU-Net's own function."""

import argparse
import math
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nnunet_ext.crossval.completion import State, is_newer
from nnunet_ext.crossval.experiment import Experiment, Model
from nnunet_ext.crossval.graph import Node
from nnunet_ext.nnunet.json_files import read_json_if_whole
from nnunet_ext.nnunet.trained_model import split_model_name


def ensemble_step(e: Experiment, needs: tuple[str, ...]) -> Node:
    """The step that ensembles the first trainings of the two best models."""
    models = [model.name for model in e.models]
    command = [sys.executable, "-m", "nnunet_ext.crossval.ensemble", e.dataset, e.configuration, "--models", *models]
    command += ["--folds", *map(str, e.folds)]
    lock = e.locks / f"{e.configuration}__ensemble.lock"
    return Node("ensemble", needs, partial(ensemble_state, e), lambda: command, "ensemble", follows=True, lock=lock)


def best_two(experiment: Experiment) -> list[Model] | None:
    """The two models with the highest pooled Dice, in the order in which they were named; None before it is known."""
    scores = {model: _dice(experiment.pooled_folder(model)) for model in experiment.models}
    if any(score is None for score in scores.values()):
        return None
    best = sorted(experiment.models, key=lambda model: -(scores[model] or 0.0))[:2]
    return [model for model in experiment.models if model in best]


def ensemble_state(experiment: Experiment) -> State:
    """Whether nnU-Net ensembled the two best after they were pooled, and determined the better one's postprocessing."""
    best = best_two(experiment)
    if best is None:
        return State.NOT_STARTED
    pooled = [experiment.pooled_folder(model) for model in best]
    ensemble = _ensemble_folder(experiment, best)
    if not is_newer(ensemble / "summary.json", [folder / "summary.json" for folder in pooled]):
        return State.NOT_STARTED
    chosen = max([*pooled, ensemble], key=lambda folder: _dice(folder) or 0.0)
    return State.FINISHED if (chosen / "postprocessing.json").is_file() else State.NOT_STARTED


def chosen_ensemble(experiment: Experiment) -> Path | None:
    """nnU-Net's folder of the ensemble of the two best; None before they are known."""
    best = best_two(experiment)
    return None if best is None else _ensemble_folder(experiment, best)


def _ensemble_folder(experiment: Experiment, best: Sequence[Model]) -> Path:
    """nnU-Net's folder of an ensemble."""
    names = "___".join(experiment.model_folder(model).name for model in best)
    return experiment.results / "ensembles" / f"ensemble___{names}___{'_'.join(map(str, experiment.folds))}"


def _dice(folder: Path) -> float | None:
    """Mean foreground Dice of a folder that nnU-Net evaluated; 0 if there was no foreground."""
    summary = read_json_if_whole(folder / "summary.json")
    if summary is None:
        return None
    dice = summary["foreground_mean"]["Dice"]
    return 0.0 if math.isnan(dice) else dice


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("--models", nargs="+", required=True, metavar="TRAINER__PLANS")
    parser.add_argument("--folds", nargs="+", type=int, required=True)
    arguments = parser.parse_args()
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    from nnunet_ext.crossval.experiment import make_experiment

    trainers, plans = zip(*(split_model_name(name) for name in arguments.models), strict=True)
    experiment = make_experiment(
        arguments.dataset, arguments.configuration, trainers, plans=plans, folds=arguments.folds, device="cpu"
    )
    best = best_two(experiment)
    if best is None:
        raise SystemExit("the trainers' results are not pooled yet")
    # nnU-Net keeps every existing file: those of a fold trained earlier, or half a file that a kill left.
    shutil.rmtree(_ensemble_folder(experiment, best), ignore_errors=True)
    models = [
        {"plans": model.plans, "configuration": arguments.configuration, "trainer": model.trainer} for model in best
    ]
    # Pooled results are kept, so that they do not become newer than what was made from them.
    find_best_configuration(arguments.dataset, models, overwrite=False, folds=arguments.folds)


if __name__ == "__main__":
    run()
