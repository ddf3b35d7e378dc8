"""Train and compare on real hippocampus scans: plan, preprocess, train, predict, evaluate, summarise."""

import argparse
import signal

from nnunet_ext.utils.devices import DEVICES
from nnunet_ext.utils.signals import handling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", default="nnunet_ext_demo", help="working folder (default: %(default)s)")
    parser.add_argument("-device", "--device", choices=DEVICES, default="auto", help="default: %(default)s")
    parser.add_argument(
        "-tr",
        "--trainers",
        nargs="+",
        default=["SASANTrainer", "StockTrainer"],
        metavar="T",
        help="default: %(default)s",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=400,
        help="training iterations per trainer; above ten, rounded up to a multiple of ten (default: %(default)s)",
    )
    parser.epilog = "After an interruption, run it again: it resumes where it stopped."


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.demo.run import run_demo

    with handling({signal.SIGTERM: _stop}):
        return run_demo(arguments.folder, arguments.trainers, arguments.iterations, arguments.device)


def _stop(*_: object) -> None:
    """Stops the demo as Ctrl-C does, so that the running nnU-Net command is stopped too."""
    raise KeyboardInterrupt
