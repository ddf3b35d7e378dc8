"""Collects the cross-validation that nnU-Net's trainings left in its results folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.compare.labels import LabelSet, check_same_labels, label_set
from nnunet_ext.compare.repeats import check_repeats
from nnunet_ext.compare.study import Case, Method, Run, Study, check_names
from nnunet_ext.nnunet.dataset_json import read_dataset_json
from nnunet_ext.nnunet.datasets import dataset_name
from nnunet_ext.nnunet.json_files import read_splits, read_summary
from nnunet_ext.nnunet.scans import label_files
from nnunet_ext.nnunet.trained_model import fold_names, model_name, pair_plans, repeat_plans, split_model_name
from nnunet_ext.utils.messages import named, some_of

STOCK_TRAINER = "nnUNetTrainer"
_TRAIN = "nnUNetv2_train {dataset} {configuration} {fold} -tr {trainer} -p {plans}"


def collect_cross_validation(
    dataset: str,
    configuration: str,
    trainers: Sequence[str],
    plans: Sequence[str] = ("nnUNetPlans",),
    *,
    folds: Sequence[str] | None = None,
    baseline: str | None = None,
    repeats: int = 1,
    repeats_of: Mapping[str, Sequence[Path]] | None = None,
) -> Study:
    """Reads `TRAINER__PLANS__CONFIGURATION/fold_k/validation` of every trainer and checks that they can be compared.

    Args:
        dataset: Number or name.
        configuration: For example 3d_fullres.
        trainers: Names of trainers, nnU-Net's or others.
        plans: One name for all trainers, or one for each.
        folds: For example 0 1 2; None: all that any of the trainers has.
        baseline: Its trainer, or TRAINER__PLANS where a trainer has several; None: nnUNetTrainer if it is among the
            trainers, else the first.
        repeats: Number of times each fold was trained; repeat r from 2 on has the plans `PLANS_repeat{r}`.
        repeats_of: Folders of further models that are repeats of a method, by its name.

    Raises:
        ValueError: for unknown trainers, missing or unfinished folds, and where cases, splits or labels differ.
        FileNotFoundError: for missing files.
    """
    results, preprocessed, raw = _folders(dataset)
    pairs = pair_plans(trainers, plans)
    names = _names(pairs)
    baseline = _baseline(baseline, pairs, names)
    check_names(names, baseline)
    models = [_model(results, trainer, plan, configuration) for trainer, plan in pairs]
    chosen = _folds(models, names, folds)
    dataset_json = read_dataset_json(models[0] / "dataset.json")
    for model in models[1:]:
        check_same_labels(dataset_json, read_dataset_json(model / "dataset.json"), model.name, models[0].name)
    truths, ending = preprocessed / "gt_segmentations", dataset_json["file_ending"]
    example = next(iter(label_files(truths, ending).values()), None) if truths.is_dir() else None
    if example is None:
        raise FileNotFoundError(
            f"no {ending} files in {truths}; nnUNetv2_plan_and_preprocess puts the true labels there"
        )
    check_same_labels(dataset_json, read_dataset_json(preprocessed / "dataset.json"), str(preprocessed), models[0].name)
    labels = label_set(dataset_json, example)
    splits, notes = _splits(preprocessed)
    more_runs = _repeats(
        pairs=pairs,
        names=names,
        configuration=configuration,
        results=results,
        repeats=repeats,
        repeats_of=repeats_of or {},
    )
    for model in (model for runs in more_runs.values() for _, _, model in runs):
        check_same_labels(dataset_json, read_dataset_json(model / "dataset.json"), model.name, models[0].name)
    methods = []
    for name, (trainer, plan), model in zip(names, pairs, models, strict=True):
        runs = []
        for own_trainer, own_plan, folder in [(trainer, plan, model), *more_runs[name]]:
            cases: dict[str, Case] = {}
            for fold in chosen:
                command = _TRAIN.format(
                    dataset=results.name, configuration=configuration, fold=fold, trainer=own_trainer, plans=own_plan
                )
                more = _fold_cases(
                    folder=folder / f"fold_{fold}",
                    fold=fold,
                    labels=labels,
                    truths=truths,
                    raw=raw,
                    splits=splits,
                    command=command,
                )
                if twice := cases.keys() & more.keys():
                    raise ValueError(
                        f"{name} validated {some_of(sorted(twice))} in several folds: choose folds that share none"
                    )
                cases |= more
            runs.append(Run(dict(sorted(cases.items())), folder))
        check_repeats(name, runs)
        methods.append(Method(name, runs[0].cases, trainer, model, runs[1:]))
    _check_same_cases(methods)
    _check_same_truth(methods)
    if splits is not None and len(chosen) < len(splits):
        notes.append(f"{named('Fold', chosen)} of {len(splits)}: the other cases of the dataset are not used.")
    return Study(f"{results.name}, {configuration}", methods, baseline, labels, chosen, notes, configuration)


def _folders(dataset: str) -> tuple[Path, Path, Path]:
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results

    try:
        name = dataset_name(dataset)
        results, preprocessed = Path(nnUNet_results) / name, Path(nnUNet_preprocessed) / name
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    raw = Path(nnUNet_raw.get() or "") / name
    if not results.is_dir():
        raise FileNotFoundError(f"no such folder: {results}; nothing has been trained on {name}")
    return results, preprocessed, raw


def _names(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Trainers' names, with the plans where these differ."""
    same = len({plan for _, plan in pairs}) == 1
    return [trainer if same else model_name(trainer, plan) for trainer, plan in pairs]


def _baseline(wanted: str | None, pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    if wanted is not None and wanted in names:
        return wanted
    found = [name for name, (trainer, _) in zip(names, pairs, strict=True) if trainer == (wanted or STOCK_TRAINER)]
    if len(found) > 1:
        raise ValueError(f"--baseline {wanted or STOCK_TRAINER} could be {' or '.join(found)}: name one of them")
    if found:
        return found[0]
    return names[0] if wanted is None else wanted


def _model(results: Path, trainer: str, plan: str, configuration: str) -> Path:
    model = results / model_name(trainer, plan, configuration)
    if not model.is_dir():
        known = sorted(path.name for path in results.glob("*__*__*") if path.is_dir())
        raise ValueError(f"no trained model {model.name} in {results}; known: {', '.join(known) or 'none'}")
    return model


def _repeats(
    *,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    configuration: str,
    results: Path,
    repeats: int,
    repeats_of: Mapping[str, Sequence[Path]],
) -> dict[str, list[tuple[str, str, Path]]]:
    """Trainer, plans and folder of each further model of a method."""
    if unknown := [name for name in repeats_of if name not in names]:
        raise ValueError(f"--repeats-of {unknown[0]}=...: no such method; known: {', '.join(names)}")
    found: dict[str, list[tuple[str, str, Path]]] = {}
    for name, (trainer, plan) in zip(names, pairs, strict=True):
        numbered = [repeat_plans(plan, number) for number in range(2, repeats + 1)]
        found[name] = [(trainer, each, _model(results, trainer, each, configuration)) for each in numbered]
        for folder in repeats_of.get(name, ()):
            if not folder.is_dir():
                raise FileNotFoundError(f"no such folder: {folder}, a repeat of {name}")
            parts = split_model_name(folder.name)
            found[name].append((parts[0], parts[1] if len(parts) > 1 else plan, folder))
    return found


def _folds(models: Sequence[Path], names: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The folds to use; every model must have them."""
    present = [set(fold_names(model)) - {"all"} for model in models]
    if wanted is not None and "all" in wanted:
        raise ValueError("fold `all` validates on its own training cases: it cannot be compared; use folds 0 1 2 3 4")
    chosen = set(wanted) if wanted is not None else set().union(*present)
    if not chosen:
        raise ValueError(f"no trained fold in {', '.join(model.name for model in models)}")
    for name, here in zip(names, present, strict=True):
        missing = sorted(chosen - here)
        if missing:
            common = sorted(set.intersection(*present))
            hint = f"; all have: -f {' '.join(common)}" if common else ""
            raise ValueError(f"{name} has no fold {', '.join(missing)}{hint}")
    return sorted(chosen, key=lambda fold: (len(fold), fold))


def _splits(preprocessed: Path) -> tuple[list[dict[str, list[str]]] | None, list[str]]:
    path = preprocessed / "splits_final.json"
    if path.is_file():
        return read_splits(path), []
    return None, [f"There is no {path.name}: the trainers' cases were compared with each other, not with the split."]


def _fold_cases(
    *,
    folder: Path,
    fold: str,
    labels: LabelSet,
    truths: Path,
    raw: Path,
    splits: list[dict[str, list[str]]] | None,
    command: str,
) -> dict[str, Case]:
    """The cases of one fold's validation, checked against the split and nnU-Net's own evaluation."""
    validation = folder / "validation"
    where = f"{folder.parent.name}/{folder.name}"
    if not (validation / "summary.json").is_file():
        raise ValueError(
            f"{where} is unfinished: it has no validation/summary.json; resume with `{command} --c` or, if only the "
            f"validation is missing, `{command} --val`"
        )
    summary = read_summary(validation / "summary.json")
    recorded = {_identifier(case["prediction_file"], labels): case["metrics"] for case in summary["metric_per_case"]}
    predicted = set(label_files(validation, labels.file_ending))
    if splits is not None:
        if int(fold) >= len(splits):
            raise ValueError(f"{where}: splits_final.json has only {len(splits)} folds")
        _check_sets(set(splits[int(fold)]["val"]), predicted, f"{where}/validation", "splits_final.json", command)
    _check_sets(predicted, set(recorded), f"{where}/validation/summary.json", "its folder", command)
    cases = {}
    for name in predicted:
        truth = truths / f"{name}{labels.file_ending}"
        if not truth.is_file():
            raise FileNotFoundError(f"no such file: {truth}, the true label of {where}/validation/{name}")
        image = raw / "imagesTr" / f"{name}_0000{labels.file_ending}"
        cases[name] = Case(
            name,
            fold,
            validation / f"{name}{labels.file_ending}",
            truth,
            image if image.is_file() else None,
            _by_name(recorded[name], labels, where),
        )
    return cases


def _identifier(file: str, labels: LabelSet) -> str:
    """Identifier of a case from a path, which another system may have written."""
    return file.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(labels.file_ending)


def _by_name(metrics: Mapping[str, Any], labels: LabelSet, where: str) -> dict[str, Any]:
    """nnU-Net's metrics by label name rather than value."""
    missing = [name for name, value in labels.labels.items() if str(value) not in metrics]
    if missing or len(metrics) != len(labels.labels):
        raise ValueError(
            f"{where}: the validation used the labels {', '.join(metrics)}, dataset.json has "
            f"{', '.join(f'{name} ({value})' for name, value in labels.labels.items())}; run the validation again"
        )
    return {name: metrics[str(value)] for name, value in labels.labels.items()}


def _check_sets(expected: set[str], found: set[str], where: str, source: str, command: str) -> None:
    missing, extra = expected - found, found - expected
    if missing:
        raise ValueError(
            f"{where} is unfinished or of another split: {len(missing)} of the {len(expected)} cases of {source} are "
            f"missing ({some_of(sorted(missing))}); run `{command} --val`"
        )
    if extra:
        raise ValueError(f"{where} has cases that {source} does not have: {some_of(sorted(extra))}")


def _check_same_cases(methods: Sequence[Method]) -> None:
    first = methods[0]
    expected = {name: case.fold for name, case in first.cases.items()}
    for method in methods[1:]:
        found = {name: case.fold for name, case in method.cases.items()}
        other = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
        if other:
            raise ValueError(
                f"{first.name} and {method.name} were validated on other cases or splits; they differ in "
                f"{some_of(sorted(other))}"
            )


def _check_same_truth(methods: Sequence[Method]) -> None:
    """Compares nnU-Net's voxel counts of the true labels: different counts mean different labels."""
    first = methods[0]
    for method in methods[1:]:
        for name, case in method.cases.items():
            for label, metrics in case.recorded.items():
                expected, found = first.cases[name].recorded[label]["n_ref"], metrics["n_ref"]
                if expected != found:
                    raise ValueError(
                        f"{first.name} and {method.name} were validated against different labels: {label} of {name} "
                        f"had {expected:.0f} and {found:.0f} voxels; run both validations again with `--val`"
                    )
