"""The part of `nnunet_ext fewshot` that runs the papers' protocol."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.utils.devices import choose_device

_PLANS, _CONFIGURATION = "nnUNetPlans", "3d_fullres"
_TRAINER, _ENCODER_TRAINER = "FAFNetFewShotTrainer", "FAFNetFewShotTimmTrainer"
_REQUIRED = ("dataset", "setting", "output")
_OWN = (
    *("dataset", "configuration", "plans", "trainer", "setting", "test_classes", "supports", "support_from", "groups"),
    *("encoder", "encoder_weights", "seed", "gpus", "processes", "wait"),
)
_OTHERS = ("model", "support", "mask", "label", "input", "labels")
_MOST_PROCESSES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the papers' protocol (instead of a trained model)")
    group.add_argument(
        "--protocol",
        choices=["paper"],
        help="train without labels, fold by fold, segment the patients of each fold with supports, and compare with "
        "baselines; run it again after an interruption, and it resumes",
    )
    group.add_argument("-d", "--dataset", metavar="DATASET", help="number or name")
    group.add_argument("-c", "--configuration", help=f"default: {_CONFIGURATION}")
    group.add_argument("-p", "--plans", help=f"default: {_PLANS}")
    group.add_argument(
        "-tr",
        "--trainer",
        help=f"one that learns from supervoxels (default: {_TRAINER}, with --encoder {_ENCODER_TRAINER})",
    )
    group.add_argument(
        "--setting",
        type=int,
        choices=[1, 2],
        help="1: test classes may appear in training slices, unlabelled; 2: slices that show them are left out",
    )
    group.add_argument("--test-classes", nargs="+", metavar="CLASS", help="default: all classes of the dataset")
    group.add_argument(
        "--supports",
        type=int,
        metavar="N",
        help="support scans of each fold, each used alone (default: 1); several give an interval over supports",
    )
    group.add_argument(
        "--support-from",
        choices=["fold", "training"],
        help="fold: a support is a patient of the fold, who is then not segmented, as in the paper; training: a "
        "training patient (default: fold)",
    )
    group.add_argument(
        "--groups",
        metavar="SOURCE",
        help="the patient of each case: CSV table case,group, or regular expression of case names (default: each case "
        "is a patient)",
    )
    group.add_argument("--encoder", metavar="NAME", help="encoder of the network (default: the trainer's)")
    group.add_argument(
        "--encoder-weights", metavar="FILE", help="initial weights of the encoder (default: the trainer's)"
    )
    group.add_argument("--seed", type=int, help="seed of the draw of supports (default: 0)")
    group.add_argument("--gpus", nargs="+", metavar="GPU", help="train folds on these at once, as in `crossval`")
    group.add_argument("-np", dest="processes", type=int, metavar="N", help="processes that preprocess")
    group.add_argument(
        "--wait", action="store_true", default=None, help="wait for another run that trains the same folds"
    )


def require(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Ends as argparse does unless all options were given."""
    parser: argparse.ArgumentParser = arguments.parser
    missing = [
        "/".join(action.option_strings)
        for action in parser._actions
        if action.dest in names and getattr(arguments, action.dest) is None
    ]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")


def refuse(arguments: argparse.Namespace) -> None:
    """Raises ValueError for an option of the protocol without --protocol."""
    for name in _OWN:
        if getattr(arguments, name) is not None:
            raise ValueError(f"{_option(name)} belongs to --protocol paper: add it, or leave {_option(name)} out")


def run(arguments: argparse.Namespace) -> int:
    require(arguments, _REQUIRED)
    for name in _OTHERS:
        if getattr(arguments, name) is not None:
            raise ValueError(
                f"{_option(name)} belongs to a trained model; --protocol paper trains its own: leave it out"
            )
    if arguments.match != "extent" or arguments.sectors != 0 or arguments.checkpoint != "checkpoint_final.pth":
        raise ValueError("--match, --sectors and --checkpoint are not options of the paper's protocol: leave them out")
    if arguments.local_prototypes:
        raise ValueError("--local-prototypes is one of the methods that --protocol paper compares: leave it out")
    if wrong := [fold for fold in arguments.folds or () if not fold.isdigit()]:
        raise ValueError(f"--folds {wrong[0]}: must be numbers from 0 on")
    device = choose_device(arguments.device)

    from nnunet_ext.crossval.experiment import make_experiment
    from nnunet_ext.crossval.fewshot import run as protocol_run
    from nnunet_ext.crossval.fewshot.encoder import encoder_environment
    from nnunet_ext.crossval.fewshot.protocol import SOURCES, Protocol
    from nnunet_ext.crossval.gpus import make_slots
    from nnunet_ext.crossval.local import LocalExecutor
    from nnunet_ext.fewshot.left_out import class_values, segmentable
    from nnunet_ext.fewshot.protocol import DEFAULT_PARTS
    from nnunet_ext.nnunet.dataset_json import read_dataset_json
    from nnunet_ext.nnunet.encoder_variables import ENCODER, ENCODER_FROZEN, ENCODER_WEIGHTS

    output = Path(arguments.output)
    experiment = make_experiment(
        arguments.dataset,
        arguments.configuration or _CONFIGURATION,
        [arguments.trainer or (_TRAINER if arguments.encoder is None else _ENCODER_TRAINER)],
        plans=[arguments.plans or _PLANS],
        folds=[int(fold) for fold in arguments.folds] if arguments.folds else None,
        report=output,
        device=device,
        groups=arguments.groups,
        processes=arguments.processes,
    )
    labels = read_dataset_json(experiment.raw / "dataset.json")["labels"]
    environment = encoder_environment(experiment.models[0].trainer, arguments.encoder, arguments.encoder_weights)
    weights = environment.get(ENCODER_WEIGHTS)
    protocol = Protocol(
        arguments.setting,
        class_values(labels, arguments.test_classes or segmentable(labels)),
        supports=1 if arguments.supports is None else arguments.supports,
        support_from=arguments.support_from or SOURCES[0],
        parts=DEFAULT_PARTS["extent"] if arguments.parts is None else arguments.parts,
        seed=arguments.seed or 0,
        encoder=environment.get(ENCODER),
        encoder_weights=str(Path(weights).resolve()) if weights and Path(weights).is_file() else weights,
        encoder_frozen=environment.get(ENCODER_FROZEN),
    )
    executor = LocalExecutor(make_slots(device, arguments.gpus), bool(arguments.wait))
    processes = min(_MOST_PROCESSES, os.cpu_count() or 1)
    outcome = protocol_run.run(experiment, protocol, executor, output, processes=processes)
    if isinstance(outcome, int):
        return outcome
    print(f"\n{(output / f'{protocol_run.TABLE}.md').read_text()}")
    print(f"Report: {output / protocol_run.REPORT / 'report.html'}")
    return 0


def _option(name: str) -> str:
    return {"processes": "-np", "input": "-i"}.get(name, f"--{name.replace('_', '-')}")
