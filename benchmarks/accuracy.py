"""Accuracy on real data: trains, validates and compares trainers on equal budgets, on one fold.

python -m benchmarks.accuracy --data DATASET_FOLDER --work FOLDER --name hippocampus [--trainers ...] [--epochs 12]
    [--iterations 50] [--batch-size 2] [--spacing Z Y X] [--fold 0] [--repeats 1] [--configuration 3d_fullres]
    [--device cpu] [--untimed] [--collect] [--add] [--results FOLDER]

DATASET_FOLDER is a dataset in nnU-Net's raw format; if it has a `splits_final.json`, that is used. FOLDER receives
nnU-Net's three folders and the report of `nnunet_ext compare`. After an interruption, run it again: it resumes where it
stopped. The results, by default in benchmarks/results, are accuracy_NAME.csv (one row per training and label, with the
checkpoint's sha256; the row of the mean has the learning curve and compare's verdict too), accuracy_NAME_cases.csv
(Dice of every validation case) and accuracy_NAME.md (compare's report, where it knows every training: all are in
FOLDER). Rows of other trainers are kept, so that trainers can be run on different days; with --add, those of other
trainings of the same trainers too, so that repeats can be run on different machines. Verdicts are compare's analysis of
all trainings of the CSV files.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.accuracy_files import TRAINERS, judge, merge, numbers_of, place, rows_in, training_of
from benchmarks.measure import RESULTS, environment
from nnunet_ext.compare.cost import network_size
from nnunet_ext.crossval.experiment import child_environment
from nnunet_ext.nnunet.budget import Budget
from nnunet_ext.nnunet.trained_model import model_name, repeat_plans
from nnunet_ext.nnunet.trainers import TRAINERS_VARIABLE
from nnunet_ext.nnunet.training_log import read_training

_VAL_ITERATIONS = 5
CONTROLS = Path(__file__).parent / "trainers"
"""Trainers that are only measured beside others."""


@dataclass(frozen=True)
class Run:
    """One training in the experiment, and its location in nnU-Net's folders."""

    work: Path
    dataset: str
    configuration: str
    plans: str
    fold: int
    trainer: str
    repeat: int = 1

    @property
    def model_name(self) -> str:
        return model_name(self.trainer, repeat_plans(self.plans, self.repeat), self.configuration)

    @property
    def model(self) -> Path:
        return self.work / "nnUNet_results" / self.dataset / self.model_name

    @property
    def folder(self) -> Path:
        return self.model / f"fold_{self.fold}"

    @property
    def summary(self) -> Path:
        return self.folder / "validation" / "summary.json"

    @property
    def checkpoint_sha256(self) -> str | None:
        """Identifies the training; None if it has not finished."""
        file = self.folder / "checkpoint_final.pth"
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None

    @property
    def began(self) -> Path:
        """File with the environment of the training, recorded before it began."""
        return self.work / "began" / f"{self.model_name}_{self.fold}.json"

    def note_beginning(self, device: str) -> None:
        """Writes `began`, unless the training has already started or finished."""
        if not self.folder.exists():
            self.began.parent.mkdir(exist_ok=True)
            self.began.write_text(json.dumps(environment(device), indent=4))

    def where(self) -> dict[str, str]:
        """The environment from `note_beginning`; commit and date are unknown if it did not see the training begin."""
        if self.began.is_file():
            return json.loads(self.began.read_text())
        return environment() | {"commit": "unknown", "date": "unknown"}


def prepare(
    data: Path,
    work: Path,
    configuration: str,
    batch_size: int,
    spacing: Sequence[str],
    environment: Mapping[str, str],
) -> str:
    """Creates the folders, plans and preprocesses; returns the name of the plan with this batch size.

    Args:
        spacing: Target spacing in mm, in the form of nnU-Net's planner; empty: nnU-Net's own choice.

    Raises:
        ValueError: if `data` is not a dataset in nnU-Net's raw format.
    """
    if not re.match(r"Dataset\d{3}_", data.name) or not (data / "dataset.json").is_file():
        raise ValueError(f"--data {data} is not an nnU-Net dataset: a folder DatasetNNN_NAME with a dataset.json")
    raw, preprocessed = work / "nnUNet_raw" / data.name, work / "nnUNet_preprocessed" / data.name
    raw.parent.mkdir(parents=True, exist_ok=True)
    if not raw.exists():
        raw.symlink_to(data.resolve(), target_is_directory=True)
    stem = f"nnUNetSpacing{'x'.join(spacing)}" if spacing else "nnUNet"
    if not (preprocessed / f"{stem}Plans_{configuration}").is_dir():
        command = ["nnUNetv2_plan_and_preprocess", "-d", str(int(data.name[7:10])), "-c", configuration]
        command += ["-np", "2", "-npfp", "2"]
        if spacing:
            command += ["-overwrite_target_spacing", *spacing, "-overwrite_plans_name", f"{stem}Plans"]
        subprocess.run(command, env=environment, check=True)
    splits = data / "splits_final.json"
    if splits.is_file():
        shutil.copy(splits, preprocessed)
    plans = json.loads((preprocessed / f"{stem}Plans.json").read_text())
    plans["plans_name"] = f"{stem}Batch{batch_size}Plans"
    plans["configurations"][configuration]["batch_size"] = batch_size
    (preprocessed / f"{plans['plans_name']}.json").write_text(json.dumps(plans, indent=4))
    return str(plans["plans_name"])


def rows_of(run: Run, timed: bool = True) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of a finished training: one per label and their mean, and one per validation case."""
    found = json.loads(run.summary.read_text())
    labels = {
        str(value): name for name, value in json.loads((run.model / "dataset.json").read_text())["labels"].items()
    }
    plan = json.loads((run.model / "plans.json").read_text())["configurations"][run.configuration]
    log = read_training(run.folder)
    epochs = len(log.epochs)
    common = {
        "trainer": run.trainer,
        "fold": run.fold,
        "repeat": run.repeat,
        "iterations": epochs * (log.iterations or 0),
        "batch_size": plan["batch_size"],
        "patch": "x".join(map(str, plan["patch_size"])),
        "spacing_mm": "x".join(f"{millimetres:g}" for millimetres in plan["spacing"]),
    }
    size = network_size(run.model, run.trainer, run.configuration)
    dice = {labels[key]: values["Dice"] for key, values in found["mean"].items()}
    dice["mean"] = statistics.fmean(dice.values())
    further = {
        "cases": len(found["metric_per_case"]),
        "seconds_per_epoch": f"{log.median('seconds'):.1f}" if timed else "",
        "peak_memory_gb": f"{log.peak_memory_gb:.2f}",
        "parameters": size["parameters"],
        "checkpoint_sha256": run.checkpoint_sha256,
        "nnunetv2": metadata.version("nnunetv2"),
        **run.where(),
    }
    totals = [{**common, "label": name, "dice": f"{value:.4f}", **further} for name, value in dice.items()]
    totals[-1]["pseudo_dice_by_epoch"] = " ".join(f"{value:.3f}" for value in log.curve("pseudo_dice")[1])
    cases = [
        {
            "trainer": run.trainer,
            "fold": run.fold,
            "repeat": run.repeat,
            "case": Path(case["prediction_file"]).name.removesuffix(".nii.gz"),
            "label": labels[key],
            "dice": f"{values['Dice']:.4f}",
        }
        for case in found["metric_per_case"]
        for key, values in case["metrics"].items()
    ]
    return totals, cases


def report(run: Run, rows: Sequence[Mapping[str, str]], timed: bool) -> Path | None:
    """Folder of `nnunet_ext compare`'s report on the trainings of some rows, made in the folder of `run`.

    None where it cannot know them all: unless there are two trainers or more, with equally many trainings, in the
    folder of `run`. The baseline is StockTrainer or, without it, the first of the others.
    """
    trained = {training_of(row): row["checkpoint_sha256"] for row in rows}
    trainers = sorted({trainer for trainer, _ in trained}, key=place)
    repeats = max(repeat for _, repeat in trained)
    there = [replace(run, trainer=name, repeat=1 + i) for name in trainers for i in range(repeats)]
    if len(trainers) < 2 or any(trained.get((each.trainer, each.repeat)) != each.checkpoint_sha256 for each in there):
        return None
    command = [sys.executable, "-m", "nnunet_ext", "compare", "-d", run.dataset, "-p", run.plans]
    command += ["-c", run.configuration, "-f", str(run.fold), "-tr", *trainers, "--baseline", trainers[0]]
    command += ["--repeats", str(repeats), *([] if timed else ["--untimed"])]
    folder = run.work / "report"
    subprocess.run([*command, "-np", "2", "-o", str(folder)], check=True)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--trainers", nargs="+", default=list(TRAINERS))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--spacing", nargs="+", default=[], help="target spacing in mm, z y x (default: nnU-Net's)")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="trainings of each trainer, by crossval (default: 1)")
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--untimed", action="store_true", help="leave out seconds: the machine had other work")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument("--add", action="store_true", help="keep the CSV file's trainings of these trainers, too")
    parser.add_argument("--collect", action="store_true", help="only collect the rows of finished trainers")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    budget = Budget(arguments.epochs, arguments.iterations, _VAL_ITERATIONS)
    folders = {name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    folders[TRAINERS_VARIABLE] = os.pathsep.join(filter(None, (os.environ.get(TRAINERS_VARIABLE), str(CONTROLS))))
    os.environ |= child_environment({**os.environ, **folders, **budget.environment()})
    try:
        plans = prepare(
            arguments.data, work, arguments.configuration, arguments.batch_size, arguments.spacing, os.environ
        )
    except ValueError as error:
        parser.error(str(error))
    runs = [
        Run(work, arguments.data.name, arguments.configuration, plans, arguments.fold, trainer, repeat)
        for trainer in arguments.trainers
        for repeat in range(1, arguments.repeats + 1)
    ]
    if not arguments.collect:
        for run in runs:
            run.note_beginning(arguments.device)
        command = [sys.executable, "-m", "nnunet_ext", "crossval", "-d", arguments.data.name, "-p", plans]
        command += ["-c", arguments.configuration, "-tr", *arguments.trainers, "--folds", str(arguments.fold)]
        command += ["--baseline", arguments.trainers[0], "--repeats", str(arguments.repeats)]
        command += ["--device", arguments.device, "-o", str(work / "report")]
        subprocess.run(command, check=True)
    finished = [run for run in runs if run.summary.is_file()]
    if not finished:
        raise SystemExit("no trainer has finished yet")
    found = [rows_of(run, not arguments.untimed) for run in finished]
    files = [arguments.results / f"accuracy_{arguments.name}{end}.csv" for end in ("", "_cases")]
    if arguments.add:
        for (totals, cases), number in zip(found, numbers_of(files[0], [each[0][0] for each in found]), strict=True):
            for row in (*totals, *cases):
                row["repeat"] = number
    for file, rows in zip(files, zip(*found, strict=True), strict=True):
        merge(file, [row for of_run in rows for row in of_run], add=arguments.add)
    judge(*files)
    page = files[0].with_suffix(".md")
    page.unlink(missing_ok=True)
    folder = report(finished[0], rows_in(files[0]), not arguments.untimed)
    if folder is not None:
        shutil.copyfile(folder / "report.md", page)


if __name__ == "__main__":
    main()
