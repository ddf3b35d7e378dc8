"""The steps that predict a folder of images, and resume where a time limit or a kill ended them."""

import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunet_ext.crossval import completion
from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.ensemble import best_two
from nnunet_ext.crossval.experiment import Experiment, Model
from nnunet_ext.crossval.graph import Node
from nnunet_ext.nnunet.checkpoints import FINAL_CHECKPOINT
from nnunet_ext.utils.files import check_whole, remove

_WRITERS = 3
"""Writing processes of nnUNetv2_predict; after a kill, this many masks may be incomplete."""


def prediction_steps(e: Experiment) -> list[Node]:
    """A step for each model, for each model's earlier stage in a cascade, and for the ensemble."""
    nodes = []
    for model in e.models:
        earlier = None
        if e.previous_stage is not None:
            earlier = _predict(e, model, e.previous_stage)
            nodes.append(earlier)
        nodes.append(_predict(e, model, e.configuration, earlier))
    if e.ensemble:
        nodes.append(_predict_ensemble(e))
    return nodes


def _predict(e: Experiment, model: Model, configuration: str, earlier: Node | None = None) -> Node:
    stage = "" if configuration == e.configuration else f"{configuration}_"
    folds = e.folds if not stage else tuple(range(e.number_of_folds))
    name = f"{stage}{model.name}"
    target = e.predictions(name)

    def command() -> list[str]:
        options = ["-i", str(e.test), "-o", str(partial_folder(target)), "-d", e.dataset_id, "-c", configuration]
        options += ["-tr", model.trainer, "-p", model.plans, "-f", *map(str, folds), "-device", e.device]
        if earlier is not None:
            previous = e.predictions(earlier.name.removeprefix("predict_"))
            options += ["-prev_stage_predictions", str(previous)]
        if e.ensemble and not stage:
            options.append("--save_probabilities")
        if partial_folder(target).is_dir():
            options.append("--continue_prediction")
        return ["nnUNetv2_predict", *options]

    def sources() -> list[Path]:
        return [e.fold_folder(model, fold, configuration) / FINAL_CHECKPOINT for fold in folds]

    needs = tuple(f"train_{stage}{model.name}_{fold}" for fold in folds)
    if earlier is not None:
        needs += (earlier.name,)
    return _predicting(e, name, needs, command, sources, resumes=True)


def _predict_ensemble(e: Experiment) -> Node:
    def members() -> list[Path]:
        """Predictions of the two best models, whose names are known once all are pooled."""
        best = best_two(e)
        return [e.predictions(name) for name in (("BEST", "SECOND") if best is None else [m.name for m in best])]

    def command() -> list[str]:
        target = partial_folder(e.predictions("ensemble"))
        return ["nnUNetv2_ensemble", "-i", *map(str, members()), "-o", str(target)]

    def sources() -> list[Path]:
        return [folder / "predict_from_raw_data_args.json" for folder in members()]

    needs = ("ensemble", *(f"predict_{model.name}" for model in e.models))
    return _predicting(e, "ensemble", needs, command, sources, resumes=False)


def _predicting(
    e: Experiment,
    name: str,
    needs: tuple[str, ...],
    command: Callable[[], list[str]],
    sources: Callable[[], Sequence[Path]],
    *,
    resumes: bool,
) -> Node:
    """A step whose masks appear in the final folder once all of them exist."""
    assert e.test is not None
    target, images = e.predictions(name), e.test
    partial = partial_folder(target)

    def read() -> State:
        ending = completion.file_ending(e.raw, e.preprocessed)
        return completion.prediction_state(target, completion.image_cases(images, ending), ending, sources())

    def before() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if resumes:
            remove_incomplete(partial, completion.file_ending(e.raw, e.preprocessed), sources())
        else:
            shutil.rmtree(partial, ignore_errors=True)

    def after() -> None:
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    group = f"predict_{name}"
    return Node(
        group,
        needs,
        read,
        command,
        group,
        on_gpu=resumes,
        follows=True,
        before=before,
        after=after,
        lock=e.locks / f"{e.configuration}__{group}.lock",
        progress=lambda: len(list(partial.glob(f"*{completion.file_ending(e.raw, e.preprocessed)}"))),
    )


def partial_folder(target: Path) -> Path:
    """The folder of an incomplete prediction."""
    return target.with_name(f"{target.name}.partial")


def remove_incomplete(folder: Path, ending: str, sources: Sequence[Path]) -> None:
    """Removes masks that `nnUNetv2_predict --continue_prediction` must not keep.

    nnU-Net keeps every existing file, even one that a kill cut off or that an earlier model predicted. In formats whose
    completeness cannot be checked, the latest files are removed.

    Args:
        folder: Folder of an interrupted prediction; nothing happens if there is none.
        ending: Ending of the masks.
        sources: Checkpoints; masks older than these were predicted by other models.
    """
    masks = sorted(folder.glob(f"*{ending}"), key=os.path.getmtime)
    latest = max((source.stat().st_mtime_ns for source in sources if source.is_file()), default=0)
    suspect = set() if ending.endswith(".gz") else set(masks[-_WRITERS:])
    for mask in masks:
        probabilities = mask.with_name(f"{mask.name.removesuffix(ending)}.npz")
        if mask in suspect or mask.stat().st_mtime_ns < latest or not _is_whole(mask) or not _is_whole(probabilities):
            remove(mask)
            remove(probabilities)


def _is_whole(file: Path) -> bool:
    if not file.is_file():
        return True  # an ensemble's probabilities, which this prediction need not have
    if file.suffix == ".npz":
        return zipfile.is_zipfile(file)
    try:
        check_whole(file)
    except (ValueError, OSError):
        return False
    return True
