"""Train and compare on real hippocampus scans, from raw data to a report, in minutes on two CPU cores."""

import argparse

from nnunet_ext.utils.devices import DEVICES


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
        default=250,
        help="training iterations per trainer; above 50, rounded up to a multiple of 50 (default: %(default)s)",
    )
    parser.add_argument("--open", action="store_true", help="open the report in the web browser")
    parser.epilog = "After an interruption, run it again: it resumes where it stopped."


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.demo import run as demo

    return demo.run(
        arguments.folder, arguments.trainers, arguments.iterations, arguments.device, open_report=arguments.open
    )
