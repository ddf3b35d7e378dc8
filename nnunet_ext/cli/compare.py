"""Compare trainers with stock nnU-Net: which is better, by how much, how sure that is, what it costs."""

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained = parser.add_argument_group("trained models (from nnU-Net's results folder)")
    trained.add_argument("-d", dest="dataset", help="number or name of the dataset")
    trained.add_argument("-c", dest="configuration", default="3d_fullres", help="default: %(default)s")
    trained.add_argument("-tr", dest="trainers", nargs="+", metavar="TRAINER", help="at least two")
    trained.add_argument(
        "-p",
        dest="plans",
        nargs="+",
        default=["nnUNetPlans"],
        help="one for all or one for each (default: nnUNetPlans)",
    )
    trained.add_argument("-f", dest="folds", nargs="+", help="folds (default: all that were trained)")
    held_out = parser.add_argument_group("a held-out test set (instead)")
    held_out.add_argument("--predictions", nargs="+", metavar="NAME=FOLDER", help="folders written by nnUNetv2_predict")
    held_out.add_argument("--labels", type=Path, help="folder of the true labels")
    held_out.add_argument("--images", type=Path, help="folder of the images, for the pictures")
    parser.add_argument(
        "--baseline",
        help="what the others are compared with (default: nnUNetTrainer if it is there, else the first; with "
        "--predictions the first)",
    )
    parser.add_argument("-o", dest="output", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.5,
        help="Dice points that do not matter, for `equivalent` (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=2.0, help="of the surface Dice (NSD), in mm (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "-np", dest="processes", type=int, default=min(8, os.cpu_count() or 1), help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="leave seconds out: trainings shared their machines with other work, or had different ones",
    )
    parser.add_argument("--cache", type=Path, help="where scores are kept (default: cache in the report's folder)")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from nnunet_ext.compare.collect import collect_cross_validation
    from nnunet_ext.compare.heldout import collect_predictions
    from nnunet_ext.compare.report.text import cost_sentence, headline, sentence
    from nnunet_ext.compare.result import Settings
    from nnunet_ext.compare.run import compare

    if arguments.predictions:
        study = collect_predictions(arguments.predictions, arguments.labels, arguments.images, arguments.baseline)
    else:
        study = collect_cross_validation(
            arguments.dataset,
            arguments.configuration,
            arguments.trainers,
            arguments.plans,
            arguments.folds,
            arguments.baseline,
        )
    settings = Settings(arguments.margin / 100, arguments.tolerance, arguments.seed, not arguments.untimed)
    outcome = compare(study, settings, arguments.output, arguments.processes, arguments.cache)
    print(f"\n{headline(outcome)}")
    for name in study.challengers:
        print(f"\n{name}: {sentence(outcome, name)} {cost_sentence(outcome, name)}".rstrip())
    print(f"\nReport: {arguments.output / 'report.html'}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Before anything heavy is imported."""
    if arguments.processes < 1:
        raise ValueError(f"-np {arguments.processes} must be at least 1")
    if arguments.predictions:
        if arguments.dataset or arguments.trainers:
            raise ValueError("--predictions stands instead of -d and -tr: give one or the other")
        if arguments.labels is None:
            raise ValueError("--predictions needs --labels, the folder of the true labels")
    elif arguments.dataset is None or not arguments.trainers:
        raise ValueError("what is to be compared? give -d and -tr, or --predictions and --labels")
    elif arguments.labels or arguments.images:
        raise ValueError("--labels and --images belong to --predictions")
