"""Collects folders of predictions for a held-out test set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ext.compare.labels import check_same_labels, label_set
from nnunet_ext.compare.study import Case, Method, Run, Study, check_names
from nnunet_ext.nnunet.dataset_json import read_dataset_json
from nnunet_ext.nnunet.scans import label_files
from nnunet_ext.utils.messages import some_of

TEST_FOLD = "test"


def collect_predictions(
    predictions: Sequence[str],
    labels: Path,
    images: Path | None = None,
    baseline: str | None = None,
    *,
    repeats_of: Mapping[str, Sequence[Path]] | None = None,
) -> Study:
    """Checks that every folder has a prediction for every label and nothing else.

    Args:
        predictions: NAME=FOLDER each; nnUNetv2_predict left dataset.json beside the predictions.
        labels: Folder of the true segmentation maps.
        images: Folder of the images, for the overlays.
        baseline: A NAME; None: the first.
        repeats_of: Folders of predictions by further trainings of a method, by its name.

    Raises:
        ValueError: where cases or labels differ.
        FileNotFoundError: for missing folders and files.
    """
    folders = _named(predictions)
    baseline = baseline or next(iter(folders))
    check_names(list(folders), baseline)
    for folder in (*folders.values(), labels, *([images] if images else [])):
        if not folder.is_dir():
            raise FileNotFoundError(f"no such folder: {folder}")
    (first, *others) = folders.items()
    dataset = read_dataset_json(first[1] / "dataset.json")
    for name, folder in others:
        check_same_labels(dataset, read_dataset_json(folder / "dataset.json"), name, first[0])
    ending = dataset["file_ending"]
    truths = label_files(labels, ending)
    if not truths:
        raise ValueError(f"{labels} has no files that end in {ending}")
    more = repeats_of or {}
    if unknown := [name for name in more if name not in folders]:
        raise ValueError(f"--repeats-of {unknown[0]}=...: no such method; known: {', '.join(folders)}")
    methods = []
    for name, folder in folders.items():
        for repeat in more.get(name, ()):
            if not repeat.is_dir():
                raise FileNotFoundError(f"no such folder: {repeat}, a repeat of {name}")
        runs = [Run(_cases(name, each, truths, ending, images)) for each in (folder, *more.get(name, ()))]
        methods.append(Method(name, runs[0].cases, repeats=runs[1:]))
    chosen = label_set(dataset, next(iter(truths.values())))
    return Study(f"Held-out set {labels.resolve().name}", methods, baseline, chosen, [TEST_FOLD])


def _named(predictions: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for text in predictions:
        name, separator, folder = text.partition("=")
        if not (name and separator and folder):
            raise ValueError(f"--predictions {text!r} must be NAME=FOLDER, for example SASAN=predictions/SASANTrainer")
        if name in folders:
            raise ValueError(f"named twice: {name}")
        folders[name] = Path(folder)
    return folders


def _cases(name: str, folder: Path, truths: Mapping[str, Path], ending: str, images: Path | None) -> dict[str, Case]:
    found = label_files(folder, ending)
    for text, cases in (("has no prediction of", truths.keys() - found), ("has no label for", found.keys() - truths)):
        if cases:
            raise ValueError(f"the cases differ: {name} ({folder}) {text} {some_of(sorted(cases))}")
    result = {}
    for case, truth in truths.items():
        image = images / f"{case}_0000{ending}" if images else None
        result[case] = Case(case, TEST_FOLD, found[case], truth, image if image and image.is_file() else None)
    return result
