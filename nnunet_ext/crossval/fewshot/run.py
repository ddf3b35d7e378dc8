"""The few-shot protocol of the papers: trains folds over patients, segments with drawn supports, and compares.

Each fold's network is trained without labels on the fold's training patients. Then a support scan of the fold shows a
class, and the network finds it in the fold's other scans: one class at a time, one support at a time (1-way, 1-shot),
in three parts of the volume. As in the papers the support is a patient of the fold itself, which is then no query;
`support_from="training"` takes it from the training patients, and every scan of the fold is a query.

Source: Cheng et al., "FAF-Net", after Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation
through self-supervision with supervoxels", MedIA 2022 (ADNet); settings 1 and 2: Ouyang et al., ECCV 2020.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from nnunet_ext.compare.labels import label_set
from nnunet_ext.compare.repeats import with_groups
from nnunet_ext.compare.report.markdown import markdown_table
from nnunet_ext.compare.report.text import headline
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.run import compare
from nnunet_ext.compare.settings import Settings
from nnunet_ext.compare.study import Case, Method, Run, Study
from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.fewshot.cases import LabelledCases, coded_dataset, labelled_cases
from nnunet_ext.crossval.fewshot.protocol import Protocol, write_plans
from nnunet_ext.crossval.fewshot.segmentation import (
    LOCAL,
    PROTOTYPES,
    Folders,
    draws_as_rows,
    methods_of,
    segment_fold,
)
from nnunet_ext.crossval.fewshot.supports import FoldDraw, draw_fold
from nnunet_ext.crossval.fewshot.table import as_rows, as_table, dice_rows, lines
from nnunet_ext.crossval.graph import Graph
from nnunet_ext.crossval.local import LocalExecutor
from nnunet_ext.crossval.preparation import prepare
from nnunet_ext.crossval.steps import build_graph
from nnunet_ext.crossval.unpack import new_split
from nnunet_ext.nnunet.groups import read_groups
from nnunet_ext.nnunet.json_files import read_json, read_json_if_whole, read_splits
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.training.faf_net_supervoxels import FAFNetSupervoxelTrainer
from nnunet_ext.utils.files import check_writable, replacing
from nnunet_ext.utils.locks import acquire, release

SETTINGS, DICE, TABLE, SUPPORTS, REPORT = "settings.json", "dice.csv", "table", "supports.csv", "report"
ONE_FOLD = "With a single fold, all intervals hold under this training only."
_LOCK = ".nnunet_ext_fewshot.lock"


def check_trainer(name: str) -> None:
    """Raises ValueError unless a trainer learns from supervoxels, without the test classes' labels."""
    if not issubclass(find_trainer(name), FAFNetSupervoxelTrainer):
        raise ValueError(
            f"{name} does not train without labels, so the test classes would steer its training; give "
            "FAFNetFewShotTrainer or a subclass of FAFNetSupervoxelTrainer"
        )


def run(
    experiment: Experiment, protocol: Protocol, executor: LocalExecutor, output: Path, *, processes: int = 1
) -> Outcome | int:
    """Runs what is missing of a protocol.

    Args:
        experiment: The trainer on its plans, the folds and the groups (patients), made by `make_experiment`.
        protocol: The settings.
        executor: Runs the trainings.
        output: Folder for masks, tables and the report.
        processes: Largest number of processes that measure.

    Returns:
        The comparison, or the exit code of trainings that did not finish, as `LocalExecutor.run`.

    Raises:
        ValueError: before anything starts, for settings that cannot work, classes that no case or no patient of a fold
            has, too few patients, and a folder with results of other settings.
    """
    protocol.check()
    (model,) = experiment.models
    check_trainer(model.trainer)
    if experiment.previous_stage is not None:
        raise ValueError(
            f"-c {experiment.configuration} needs the segmentation of a previous stage, which new classes do not have: "
            "take another configuration"
        )
    cases = labelled_cases(experiment.raw)
    draws = draw(experiment, protocol, cases)
    check_writable(output)
    lock = acquire({output / _LOCK: f"the few-shot protocol in {output}"})
    try:
        with mock.patch.dict(os.environ, protocol.environment()):
            _note_settings(experiment, protocol, draws, output / SETTINGS)
            code, trained = _train(experiment, protocol, executor)
            if code != 0:
                return code
            study = _segment(trained, protocol, cases, draws, output)
            settings = Settings(seed=protocol.seed, timed=not experiment.untimed, empty_labels="rate")
            outcome = compare(study, settings, output / REPORT, processes)
            _write_tables(outcome, draws, output)
            return outcome
    finally:
        release(lock.values())


def draw(experiment: Experiment, protocol: Protocol, cases: LabelledCases) -> list[FoldDraw]:
    """Draws the supports of every fold.

    Raises:
        ValueError: as `draw_fold` and `LabelledCases.shown`.
    """
    names = sorted(cases.truths)
    groups = {case: case for case in names} if experiment.groups is None else read_groups(experiment.groups, names)
    known = experiment.splits_file.is_file()
    splits = read_splits(experiment.splits_file) if known else new_split(names, experiment.groups)
    shown = cases.shown(protocol.classes)
    return [draw_fold(fold, splits[fold], shown, groups, protocol) for fold in experiment.folds]


def _train(experiment: Experiment, protocol: Protocol, executor: LocalExecutor) -> tuple[int, Experiment]:
    """Trains and validates the folds on the protocol's plans; returns the exit code and the experiment on them."""
    (model,) = experiment.models
    if protocol.plans_name(model.plans) != model.plans:
        # The protocol's plans are a copy of plans that may have to be made first.
        if read_json_if_whole(experiment.plans_file(model.plans)) is None:
            code = executor.run_steps(experiment, Graph(prepare(experiment)[0]))
            if code != 0:
                return code, experiment
        experiment = replace(experiment, models=(replace(model, plans=write_plans(experiment, protocol)),))
    graph = build_graph(experiment)
    # nnU-Net's pooled validation is that of its own labels: no result of this protocol.
    kept = [node for node in graph.nodes.values() if not node.name.startswith("pool_")]
    return executor.run_steps(experiment, Graph(kept)), experiment


def _segment(
    experiment: Experiment, protocol: Protocol, cases: LabelledCases, draws: Sequence[FoldDraw], output: Path
) -> Study:
    """Writes all masks and returns what is compared."""
    (model,) = experiment.models
    folder, folders = experiment.model_folder(model), Folders(output, str(cases.dataset["file_ending"]))
    for fold in draws:
        segment_fold(fold, folder, cases, protocol, folders, trained=model.trainer, device=experiment.device)
    content = coded_dataset(
        list(protocol.classes), folders.ending, cases.dataset["channel_names"], cases.ignore is not None
    )
    methods = []
    for name in methods_of(model.trainer):
        runs = []
        for number in range(1, protocol.supports + 1):
            of_support = folders.support(name, number)
            with replacing(of_support / "dataset.json", "w") as file:
                json.dump(content, file, indent=4)
            found = {case: _case(case, fold, of_support, cases, folders) for fold in draws for case in fold.queries}
            runs.append(Run(dict(sorted(found.items())), folder if name == model.trainer else None))
        trainer = model.trainer if name == model.trainer else None
        methods.append(Method(name, runs[0].cases, trainer, runs[0].model, runs[1:]))
    example = next(iter(methods[0].cases.values())).truth
    study = Study(
        f"{experiment.dataset}, {experiment.configuration}: few-shot segmentation, setting {protocol.setting}",
        methods,
        model.trainer,
        label_set(content, example),
        [str(fold.fold) for fold in draws],
        _notes(protocol),
        experiment.configuration,
        supports=True,
    )
    return with_groups(study, experiment.groups)


def _case(name: str, fold: FoldDraw, masks: Path, cases: LabelledCases, folders: Folders) -> Case:
    image = Path(cases.scans[name].files[0])
    truth = folders.true_file(name)
    return Case(name, str(fold.fold), masks / truth.name, truth, image if image.is_file() else None)


def _notes(protocol: Protocol) -> list[str]:
    where = {
        "fold": "patients of the fold, which are not segmented",
        "training": "training patients of the fold",
    }[protocol.support_from]
    test_classes = {
        1: "may appear, unlabelled, in training slices",
        2: f"({', '.join(protocol.classes)}) appear in no training slice",
    }[protocol.setting]
    shown = (
        f"Each fold has {protocol.supports} support scan(s) of each class, {where}. Each is used alone, in "
        f"{protocol.parts} part(s), and is the same for all methods. Repeats are supports, not trainings."
    )
    return [
        f"Test classes {test_classes} (setting {protocol.setting}).",
        shown,
        f"{LOCAL!r} have the features of the trained network, but neither its adapted prototypes nor its threshold.",
        f"The encoder of {PROTOTYPES!r} is that of the network before training.",
    ]


def _note_settings(experiment: Experiment, protocol: Protocol, draws: Sequence[FoldDraw], file: Path) -> None:
    """Writes the settings and draws, unless a folder has other ones: their masks must not mix."""
    (model,) = experiment.models
    settings: dict[str, Any] = {
        "dataset": experiment.dataset,
        "configuration": experiment.configuration,
        "trainer": model.trainer,
        "plans": protocol.plans_name(model.plans),
        "setting": protocol.setting,
        "classes": {name: list(values) for name, values in protocol.classes.items()},
        "supports": protocol.supports,
        "support_from": protocol.support_from,
        "parts": protocol.parts,
        "seed": protocol.seed,
    }
    earlier: Mapping[str, Any] = read_json(file) if file.is_file() else {"settings": settings, "draws": {}}
    changed = [key for key, value in settings.items() if earlier["settings"].get(key) != value]
    own = {str(each.fold): each.as_json() for each in draws}
    changed += [f"draw of fold {fold}" for fold in own if earlier["draws"].get(fold, own[fold]) != own[fold]]
    if changed:
        raise ValueError(
            f"{file.parent} has results of other settings ({', '.join(changed)}): give another folder with -o, or "
            "remove it"
        )
    with replacing(file, "w") as opened:
        json.dump({"settings": settings, "draws": {**earlier["draws"], **own}}, opened, indent=4)


def _write_tables(outcome: Outcome, draws: Sequence[FoldDraw], output: Path) -> None:
    supports, found, folds = pd.DataFrame(draws_as_rows(draws)), lines(outcome), list(outcome.study.folds)
    table = as_table(found, folds)
    page = [f"# {outcome.study.title}", "", headline(outcome), "", *markdown_table(table), ""]
    page += [ONE_FOLD, ""] if len(folds) == 1 else []
    texts = {
        SUPPORTS: supports.rename(columns={"label": "class"}).to_csv(index=False, lineterminator="\n"),
        DICE: dice_rows(outcome, supports).to_csv(index=False, lineterminator="\n"),
        f"{TABLE}.csv": as_rows(found, folds).to_csv(index=False, lineterminator="\n"),
        f"{TABLE}.md": "\n".join(page),
    }
    for name, text in texts.items():
        with replacing(output / name, "w") as file:
            file.write(text)
