"""Fine-tuning against training from scratch: what weights of another plan, and of another organ, are worth.

python -m benchmarks.fine_tuning --hippocampus DATASET_FOLDER [--acdc DATASET_FOLDER] --work FOLDER
    [--trainer SASANTrainer] [--source-iterations 200] [--iterations 100] [--repeats 3] [--results FOLDER]

The target is hippocampus at 2 mm, fold 0. Each repeat trains it with the same budget and random seeds of its own: from
scratch; from weights of hippocampus at 1 mm, which saw the same training cases; and with --acdc, as a negative control,
from weights of ACDC, hearts in thick slices. `nnunet_ext adapt-weights` carries the weights over; nnU-Net's own
commands plan, train and validate. It resumes where it stopped. Rows of finished trainings go to
fine_tuning_cpu.csv.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.accuracy import prepare
from benchmarks.measure import RESULTS, environment, write_csv
from benchmarks.page.result_files import Results
from nnunet_ext.crossval.completion import resume_options
from nnunet_ext.crossval.experiment import child_environment
from nnunet_ext.nnunet.budget import Budget
from nnunet_ext.nnunet.trained_model import model_name

NAME = "fine_tuning_cpu"
_CONFIGURATION, _FOLD = "3d_fullres", 0
_TARGET_SPACING, _ACDC_SPACING = ("2", "2", "2"), ("10", "3.125", "3.125")
_TARGET_BATCH, _SOURCE_BATCH = 4, 2
_PER_EPOCH, _VAL_ITERATIONS = 20, 2


def train(trainer: str, dataset: str, plans: str, budget: Budget, results: Path, weights: Path | None = None) -> Path:
    """Trains fold 0, or resumes it; returns its folder."""
    folder = results / dataset / model_name(trainer, plans, _CONFIGURATION) / f"fold_{_FOLD}"
    if not (folder / "validation" / "summary.json").is_file():
        command = ["nnUNetv2_train", dataset, _CONFIGURATION, str(_FOLD), "-tr", trainer, "-p", plans, "-device", "cpu"]
        begun = resume_options(folder)
        command += begun if begun or weights is None else ["-pretrained_weights", str(weights)]
        own = {**os.environ, "nnUNet_results": str(results), **budget.environment()}
        subprocess.run(command, env=own, check=True)
    return folder


def adapted(checkpoint: Path, plans: Path, output: Path) -> tuple[Path, str]:
    """Weights for a plan, and how many were taken, adapted and left."""
    command = [sys.executable, "-m", "nnunet_ext", "adapt-weights", str(checkpoint), str(output)]
    command += ["--plans", str(plans), "-c", _CONFIGURATION, "--json"]
    table = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return output, ", ".join(f"{number} {fate}" for fate, number in table["counts"].items() if number)


def row_of(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a finished training."""
    found = json.loads((folder / "validation" / "summary.json").read_text())
    labels = json.loads((folder.parent / "dataset.json").read_text())["labels"]
    dice = {f"dice_{name}": found["mean"][str(value)]["Dice"] for name, value in labels.items() if value}
    numbers = {**dice, "dice_mean": statistics.fmean(dice.values())}
    return {
        **facts,
        **{name: f"{value:.4f}" for name, value in numbers.items()},
        "cases": len(found["metric_per_case"]),
        **environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hippocampus", type=Path, required=True)
    parser.add_argument("--acdc", type=Path, help="default: no negative control")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--trainer", default="SASANTrainer")
    parser.add_argument("--source-iterations", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    folders = {name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    os.environ |= child_environment({**os.environ, **folders})

    source = Budget(arguments.source_iterations // _PER_EPOCH, _PER_EPOCH, _VAL_ITERATIONS)
    target = Budget(arguments.iterations // _PER_EPOCH, _PER_EPOCH, _VAL_ITERATIONS)
    hippocampus = arguments.hippocampus.name
    plans = prepare(arguments.hippocampus, work, _CONFIGURATION, _TARGET_BATCH, _TARGET_SPACING, os.environ)
    plans_file = work / "nnUNet_preprocessed" / hippocampus / f"{plans}.json"
    origins: dict[str, Path | None] = {"scratch": None}
    for name, data, spacing in (
        ("hippocampus 1 mm", arguments.hippocampus, ()),
        ("ACDC", arguments.acdc, _ACDC_SPACING),
    ):
        if data is None:
            continue
        own = prepare(data, work, _CONFIGURATION, _SOURCE_BATCH, spacing, os.environ)
        folder = train(arguments.trainer, data.name, own, source, work / "nnUNet_results")
        origins[name] = folder / "checkpoint_final.pth"

    file = arguments.results / f"{NAME}.csv"
    rows: list[dict[str, Any]] = [*Results(arguments.results).rows(NAME)]
    done = {(row["trainer"], row["origin"], row["repeat"]) for row in rows}
    for repeat in range(1, arguments.repeats + 1):
        for origin, checkpoint in origins.items():
            if (arguments.trainer, origin, str(repeat)) in done:
                continue
            named = f"{origin.replace(' ', '_')}_{repeat}"
            weights, counts = None, ""
            if checkpoint is not None:  # anew: what the file lacks gets other initial values
                weights, counts = adapted(checkpoint, plans_file, work / f"{named}.pth")
            folder = train(arguments.trainer, hippocampus, plans, target, work / "targets" / named, weights)
            facts = {
                "trainer": arguments.trainer,
                "origin": origin,
                "repeat": repeat,
                "source_iterations": arguments.source_iterations if checkpoint is not None else 0,
                "iterations": arguments.iterations,
                "batch_size": _TARGET_BATCH,
                "weights": counts,
            }
            rows.append(row_of(folder, facts))
            write_csv(file, rows, {})
    print(f"{len(rows)} rows in {file}")


if __name__ == "__main__":
    main()
