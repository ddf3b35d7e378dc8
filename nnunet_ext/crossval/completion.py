"""The state of each step, read from nnU-Net's own folders, so that it is right however the step ended.

nnU-Net writes most files in place, so a kill can leave half a file: a file counts only if it can be read to its end.
"""

import os
import zipfile
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from nnunet_ext.nnunet.checkpoints import CHECKPOINTS, FINAL_CHECKPOINT
from nnunet_ext.nnunet.json_files import read_json_if_whole
from nnunet_ext.nnunet.trained_model import split_model_name


class State(Enum):
    FINISHED = "finished"
    RESUMABLE = "resumable"
    NOT_STARTED = "not started"


def copy_state(copy: Path, source: Path) -> State:
    """State of a JSON file made from another: finished if it is complete and not older."""
    return json_state(copy) if is_newer(copy, [source]) else State.NOT_STARTED


def json_state(path: Path) -> State:
    return State.NOT_STARTED if read_json_if_whole(path) is None else State.FINISHED


def is_newer(product: Path, sources: Iterable[Path]) -> bool:
    """Whether a file and its sources exist, and none of the sources was written after it."""
    if not product.is_file():
        return False
    written = product.stat().st_mtime_ns
    return all(source.is_file() and source.stat().st_mtime_ns <= written for source in sources)


def file_ending(raw: Path, preprocessed: Path) -> str:
    """Ending of the dataset's images, for example .nii.gz."""
    contents = (read_json_if_whole(folder / "dataset.json") for folder in (raw, preprocessed))
    return str(next((content for content in contents if content), dict[str, str]()).get("file_ending", ""))


def training_cases(raw: Path, preprocessed: Path) -> list[str]:
    """Names of the training cases; if the raw data were removed, of the cases with a true label."""
    dataset = read_json_if_whole(raw / "dataset.json")
    if dataset is None:
        truth, ending = preprocessed / "gt_segmentations", file_ending(raw, preprocessed)
        return sorted(file.name.removesuffix(ending) for file in truth.iterdir()) if truth.is_dir() else []
    return list(dataset["dataset"]) if "dataset" in dataset else image_cases(raw / "imagesTr", dataset["file_ending"])


def image_cases(folder: Path, ending: str) -> list[str]:
    """Names of the cases in a folder of images, whose channels end in _0000, _0001, ..."""
    from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

    return [str(name) for name in get_identifiers_from_splitted_dataset_folder(str(folder), ending)]


def data_identifier(plans_file: Path, configuration: str) -> str | None:
    """Folder of a configuration's preprocessed data; None while there is no plan.

    Raises:
        ValueError: for a configuration that the plan does not have.
    """
    plans = read_json_if_whole(plans_file)
    if plans is None:
        return None
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise ValueError(f"unknown configuration {configuration!r} in {plans_file}; known: {known}")
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans).get_configuration(configuration).data_identifier


def preprocessing_state(folder: Path, cases: Sequence[str], truth: Path, ending: str) -> State:
    """nnU-Net writes a case's .pkl last, and copies the true labels after all cases."""
    done = bool(cases) and all(
        is_whole_pickle(folder / f"{case}.pkl") and (truth / f"{case}{ending}").is_file() for case in cases
    )
    return State.FINISHED if done else State.NOT_STARTED


def is_whole_pickle(path: Path) -> bool:
    """Whether a pickle is complete."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"."  # a pickle's last instruction
    except OSError:
        return False


def unpacking_state(folder: Path, splits: Path) -> State:
    """Whether the split exists and no case is left to unpack: .npz files are unpacked, .b2nd files read directly."""
    packed = list(folder.glob("*.npz"))
    whole = all(_is_whole_array(file.with_suffix(".npy")) for file in packed) and all(
        _is_whole_array(file.with_name(f"{file.stem}_seg.npy")) for file in packed
    )
    return State.FINISHED if whole and read_json_if_whole(splits) else State.NOT_STARTED


def _is_whole_array(path: Path) -> bool:
    import numpy as np

    try:
        np.load(path, mmap_mode="r")  # fails if the file is shorter than its header says
    except (OSError, ValueError):
        return False
    return True


def _is_whole_checkpoint(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)  # a zip file ends with its table


def training_state(fold: Path, probabilities: bool = False) -> State:
    """State of a fold's training and validation; with `probabilities`, the validation must have written these too."""
    if _is_whole_checkpoint(fold / FINAL_CHECKPOINT):
        return State.FINISHED if _is_validated(fold / "validation", probabilities) else State.RESUMABLE
    return State.NOT_STARTED if resume_point(fold) is None else State.RESUMABLE


def stage_state(fold: Path, next_stage: str) -> State:
    """State of a fold of a cascade's earlier stage: its validation must also have predicted for the next stage."""
    state = training_state(fold)
    if state is not State.FINISHED:
        return state
    folder = fold.parent / "predicted_next_stage" / next_stage
    summary = read_json_if_whole(fold / "validation" / "summary.json")
    predicted = {file.name.split(".")[0] for file in folder.glob("*")}
    cases = [Path(entry["prediction_file"]).name.split(".")[0] for entry in summary["metric_per_case"]]
    return State.FINISHED if predicted.issuperset(cases) else State.RESUMABLE


def _is_validated(folder: Path, probabilities: bool) -> bool:
    summary = read_json_if_whole(folder / "summary.json")
    if summary is None:
        return False
    whole = sum(zipfile.is_zipfile(file) for file in folder.glob("*.npz")) if probabilities else 0
    return not probabilities or whole == len(summary["metric_per_case"])


def resume_point(fold: Path) -> Path | None:
    """The checkpoint from which nnUNetv2_train --c resumes."""
    return next((fold / name for name in CHECKPOINTS if _is_whole_checkpoint(fold / name)), None)


def resume_progress(fold: Path) -> tuple[str, int] | None:
    """The checkpoint from which a fold would resume, and when it was written."""
    point = resume_point(fold)
    return None if point is None else (point.name, point.stat().st_mtime_ns)


def resume_options(fold: Path) -> list[str]:
    """Options of nnUNetv2_train that resume a fold; a trained fold is only validated."""
    point = resume_point(fold)
    if point is None:
        return []
    return ["--val"] if point.name == FINAL_CHECKPOINT else ["--c"]


def set_aside_broken(path: Path) -> None:
    """Renames a JSON file or a checkpoint that a kill cut off, so that nnU-Net does not trip over it."""
    whole = _is_whole_checkpoint(path) if path.suffix == ".pth" else read_json_if_whole(path) is not None
    if path.is_file() and not whole:
        os.replace(path, path.with_name(f"{path.name}.broken"))


def pooling_state(pooled: Path, folds: Iterable[Path]) -> State:
    """Whether the folds' validations were pooled since the last of them was written."""
    summary = pooled / "summary.json"
    newer = is_newer(summary, (fold / "validation" / "summary.json" for fold in folds))
    return State.FINISHED if newer and read_json_if_whole(summary) is not None else State.NOT_STARTED


def report_state(
    report: Path, names: Sequence[str], folds: Sequence[str], pooled: Iterable[Path], baseline: str | None = None
) -> State:
    """Whether a report of exactly these trainers (and this baseline) was written after their results were pooled."""
    summary = read_json_if_whole(report / "summary.json")
    if summary is None or set(summary["entrants"]) != set(names) or set(summary["folds"]) != set(folds):
        return State.NOT_STARTED
    # Names in the report include the plans where these differ; the option's name need not.
    if baseline is not None and baseline not in (summary["baseline"], split_model_name(summary["baseline"])[0]):
        return State.NOT_STARTED
    newer = is_newer(report / "report.html", [folder / "summary.json" for folder in pooled])
    return State.FINISHED if newer else State.NOT_STARTED


def holds_beyond(report: Path, ensemble: Path | None, masks: Sequence[str]) -> bool:
    """Whether a report has the ensemble and the folders of masks, and is newer than the ensemble's evaluation."""
    summary = read_json_if_whole(report / "summary.json")
    if summary is None or (summary.get("ensemble") is None) != (ensemble is None):
        return False
    named = [row["name"] for row in summary.get("masks", [])]
    sources = [] if ensemble is None else [ensemble / "summary.json"]
    return named == list(masks) and is_newer(report / "report.html", sources)


def prediction_state(target: Path, cases: Sequence[str], ending: str, sources: Sequence[Path]) -> State:
    """Whether all cases were predicted since the last source was written."""
    done = bool(cases) and all(is_newer(target / f"{case}{ending}", sources) for case in cases)
    return State.FINISHED if done else State.NOT_STARTED
