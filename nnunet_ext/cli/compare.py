"""Compare trainers with stock nnU-Net: which is better, by how much, how certain that is, and at what cost."""

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    trained = parser.add_argument_group("trained models (from nnU-Net's results folder)")
    trained.add_argument("-d", "--dataset", help="number or name of the dataset")
    trained.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    trained.add_argument("-tr", "--trainers", nargs="+", metavar="TRAINER", help="at least two")
    trained.add_argument(
        "-p",
        "--plans",
        nargs="+",
        default=["nnUNetPlans"],
        help="plans, one name for all trainers or one for each (default: nnUNetPlans)",
    )
    trained.add_argument("-f", "--folds", nargs="+", help="folds (default: all that were trained)")
    trained.add_argument(
        "--ensemble", type=Path, metavar="FOLDER", help="nnU-Net's folder of an ensemble of them, for the report"
    )
    trained.add_argument(
        "--masks", nargs="+", default=[], metavar="NAME=FOLDER", help="predicted masks of other scans, for the report"
    )
    held_out = parser.add_argument_group("a held-out test set (instead)")
    held_out.add_argument("--predictions", nargs="+", metavar="NAME=FOLDER", help="folders written by nnUNetv2_predict")
    held_out.add_argument("--labels", type=Path, help="folder of the true labels")
    held_out.add_argument("--images", type=Path, help="folder of the images, for the pictures")
    several = parser.add_argument_group("several datasets (instead)")
    several.add_argument(
        "--reports", nargs="+", type=Path, metavar="SUMMARY.JSON", help="reports whose rankings are combined into one"
    )
    parser.add_argument(
        "--baseline",
        help="method with which the others are compared (default: nnUNetTrainer if it is named, else the first; with "
        "--predictions the first)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.5,
        help="Dice points that do not matter, for `equivalent` (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=["2"],
        metavar="MM",
        help="tolerance of the surface Dice (NSD) in mm, and of single labels: 2 liver=3 vessel=1 (default: 2)",
    )
    parser.add_argument(
        "--groups",
        metavar="FILE.csv|REGEX",
        help="cases that are not independent: a table `case,group`, or a regular expression that finds the group, for "
        "example the patient, in a case's name",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=1,
        metavar="R",
        help="trainings of each fold, by `nnunet_ext crossval --repeats` (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats-of",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER,FOLDER",
        help="further models, or folders of predictions, that are repeats of a method with other random seeds",
    )
    parser.add_argument(
        "--empty-labels",
        choices=["score", "rate"],
        default="score",
        help="cases without a label: score 1 for an empty prediction and 0 for any other, or report a false-positive "
        "rate (default: %(default)s)",
    )
    parser.add_argument(
        "--lesions",
        nargs="+",
        default=[],
        metavar="LABEL",
        help="labels whose lesions (connected components) are counted: recall, precision, F1 and recall by volume",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "-np",
        dest="processes",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="largest number of processes; fewer where memory is short (default: %(default)s)",
    )
    parser.add_argument(
        "--untimed",
        action="store_true",
        help="leave seconds out: trainings shared their machines with other work, or had different ones",
    )
    parser.add_argument(
        "--cache", type=Path, help="folder in which scores are kept (default: cache in the report's folder)"
    )


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    if arguments.reports:
        from nnunet_ext.compare import consensus

        for place in consensus.run(arguments.reports, arguments.output, arguments.seed):
            print(f"{place.name}: mean rank {place.mean_rank:.2f} (95% interval {place.low:.2f} to {place.high:.2f})")
        print(f"\nReport: {arguments.output / 'consensus.html'}")
        return 0
    from nnunet_ext.compare.beyond import read_beyond
    from nnunet_ext.compare.collect import collect_cross_validation
    from nnunet_ext.compare.heldout import collect_predictions
    from nnunet_ext.compare.repeats import read_repeats, with_groups
    from nnunet_ext.compare.report.text import cost_sentence, headline, lesion_sentence, sentence
    from nnunet_ext.compare.run import compare
    from nnunet_ext.compare.settings import Settings, parse_tolerances

    repeats_of = read_repeats(arguments.repeats_of)
    if arguments.predictions:
        study = collect_predictions(
            arguments.predictions, arguments.labels, arguments.images, arguments.baseline, repeats_of=repeats_of
        )
    else:
        study = collect_cross_validation(
            arguments.dataset,
            arguments.configuration,
            arguments.trainers,
            arguments.plans,
            folds=arguments.folds,
            baseline=arguments.baseline,
            repeats=arguments.repeats,
            repeats_of=repeats_of,
        )
    study = with_groups(study, arguments.groups)
    general, single = parse_tolerances(arguments.tolerance)
    settings = Settings(
        arguments.margin / 100,
        general,
        single,
        seed=arguments.seed,
        timed=not arguments.untimed,
        empty_labels=arguments.empty_labels,
        lesions=tuple(dict.fromkeys(arguments.lesions)),
    )
    first = next(iter(study.methods[0].cases.values()))
    beyond = read_beyond(arguments.ensemble, arguments.masks, first.truth.name.removeprefix(first.name))
    outcome = compare(study, settings, arguments.output, arguments.processes, arguments.cache, beyond=beyond)
    print(f"\n{headline(outcome)}")
    for name in study.challengers:
        parts = (sentence(outcome, name), lesion_sentence(outcome, name), cost_sentence(outcome, name))
        print(f"\n{name}: {' '.join(part for part in parts if part)}")
    print(f"\nReport: {arguments.output / 'report.html'}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Checks the options before anything heavy is imported."""
    if arguments.processes < 1:
        raise ValueError(f"-np {arguments.processes} must be at least 1")
    if arguments.repeats < 1:
        raise ValueError(f"--repeats {arguments.repeats} must be at least 1")
    if arguments.reports:
        if arguments.dataset or arguments.trainers or arguments.predictions:
            raise ValueError("--reports stands alone: leave -d, -tr and --predictions out")
        return
    if arguments.predictions:
        if arguments.dataset or arguments.trainers:
            raise ValueError("--predictions stands instead of -d and -tr: give one or the other")
        if arguments.repeats > 1:
            raise ValueError("--repeats belongs to -d and -tr; with --predictions give --repeats-of NAME=FOLDER,FOLDER")
        if arguments.labels is None:
            raise ValueError("--predictions needs --labels, the folder of the true labels")
        if arguments.ensemble or arguments.masks:
            raise ValueError("--ensemble and --masks belong to -d and -tr")
    elif arguments.dataset is None or not arguments.trainers:
        raise ValueError("nothing to compare: give -d and -tr, or --predictions and --labels")
    elif arguments.labels or arguments.images:
        raise ValueError("--labels and --images belong to --predictions")
