"""Segment a class that the network was not trained on, shown in one labelled scan, or run the papers' protocol."""

import argparse
import sys
from pathlib import Path

from nnunet_ext.cli import fewshot_protocol
from nnunet_ext.utils.devices import DEVICES, choose_device

_REQUIRED = ("model", "support", "mask", "label", "input", "output")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(parser=parser)
    parser.add_argument("--model", help="a trained FAF-Net: nnU-Net's folder TRAINER__PLANS__CONFIGURATION")
    parser.add_argument(
        "--support",
        action="append",
        metavar="IMAGE",
        help="a scan that shows the class; further channels (_0001, ..) are read from the same folder. Can be given "
        "several times, each time with its own --mask",
    )
    parser.add_argument("--mask", action="append", help="labels of the support scan, on the same voxels")
    parser.add_argument("--label", type=int, nargs="+", metavar="N", help="value(s) in the mask to segment")
    parser.add_argument("-i", "--input", metavar="FOLDER", help="folder with the scans, named as in nnU-Net")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="folder for the masks, which have the labels N; with --protocol also for the tables and the report",
    )
    parser.add_argument(
        "--parts",
        type=int,
        help="number of parts of a volume along the slices, each with its own support slice (default: 3, as in the "
        "paper, or 40 with --match position)",
    )
    parser.add_argument(
        "--match",
        choices=["extent", "position"],
        default="extent",
        help="extent: divide the label's extent in the support, as in the paper; position: divide the support scan, "
        "for scans with the same field of view; parts without the label are skipped (default: %(default)s)",
    )
    parser.add_argument(
        "--sectors",
        type=int,
        default=0,
        metavar="S",
        help="number of directions, for example 8, in which the label's surroundings in the support compete with it; "
        "0, as in the paper: a threshold alone decides (default: %(default)s)",
    )
    parser.add_argument(
        "--local-prototypes",
        action="store_true",
        help="the nearest of many local prototypes of each label and its background decides, in place of the paper's "
        "adapted prototype and threshold; not with --sectors",
    )
    parser.add_argument(
        "--labels", metavar="FOLDER", help="folder with true labels; writes the Dice to dice.csv and dice.md in OUTPUT"
    )
    parser.add_argument("-f", "--folds", nargs="+", metavar="K", help="folds to average (default: all trained folds)")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="checkpoint file (default: %(default)s)")
    parser.add_argument("-device", "--device", choices=DEVICES, default="auto", help="default: %(default)s")
    fewshot_protocol.add_arguments(parser)
    parser.epilog = (
        "A scan that cannot be segmented does not stop the others; it is named at the end, and the exit code is 1. "
        "--model, --support, --mask, --label, -i and -o are required without --protocol, -d, --setting and -o with it."
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.protocol is not None:
        return fewshot_protocol.run(arguments)
    fewshot_protocol.refuse(arguments)
    fewshot_protocol.require(arguments, _REQUIRED)
    if len(arguments.support) != len(arguments.mask):
        raise ValueError(f"{len(arguments.support)} --support and {len(arguments.mask)} --mask: give a mask with each")
    for mask in arguments.mask:
        if not Path(mask).is_file():
            raise FileNotFoundError(f"--mask: no such file: {mask}")
    if arguments.local_prototypes and arguments.sectors:
        raise ValueError("--local-prototypes and --sectors both say what competes with the label: leave one out")
    truth = Path(arguments.labels) if arguments.labels else None
    if truth is not None and not truth.is_dir():
        raise FileNotFoundError(f"--labels: no such folder: {truth}")
    device = choose_device(arguments.device)

    from nnunet_ext.fewshot.model import FewShotModel
    from nnunet_ext.fewshot.run import evaluate, segment_scans, write_evaluation
    from nnunet_ext.nnunet.scans import check_other_folder, scan_of, scans_in
    from nnunet_ext.utils.files import check_writable

    check_other_folder(arguments.output, arguments.input)
    model = FewShotModel(arguments.model, device, arguments.folds, arguments.checkpoint)
    if arguments.local_prototypes:
        model = model.by_local_prototypes()
    (scans, failures), target = scans_in(arguments.input, model.endings), Path(arguments.output)
    total = len(scans) + len(failures)
    check_writable(target)
    examples = [
        (scan_of(image, model.endings), Path(mask))
        for image, mask in zip(arguments.support, arguments.mask, strict=True)
    ]
    model.show(examples, arguments.label, arguments.parts, arguments.match, arguments.sectors)
    failures += segment_scans(model, scans, target)
    failed = {failure.case for failure in failures}
    done = [scan for scan in scans if scan.case not in failed]
    print(f"Wrote {len(done)} of {total} masks to {target}")
    if truth is not None:
        table, without = evaluate(model, done, target, truth)
        write_evaluation(table, target)
        failures += without
        print((target / "dice.md").read_text())
    for failure in failures:
        print(f"{failure.case}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0
