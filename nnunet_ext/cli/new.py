"""Write a trainer for your own network, or for one of a library, ready to train."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trainer", help="name of the trainer, MyNetTrainer for instance; the file gets it too")
    parser.add_argument(
        "--network",
        metavar="PACKAGE.CLASS",
        help="class of a library, monai.networks.nets.UNet for instance (default: a small network in the file)",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="my_trainers",
        help="folder for trainers only (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    import os

    from nnunet_ext.check.template import write_trainer
    from nnunet_ext.nnunet.trainers import TRAINERS_VARIABLE, external_trainers

    folder = Path(arguments.output).resolve()
    file = write_trainer(arguments.trainer, arguments.network, folder)
    name = arguments.trainer
    print(f"wrote {file}")
    if "..." in file.read_text():
        print("fill in the arguments that it marks by `...`")
    parts = [part for part in external_trainers(os.environ).split(os.pathsep) if part != str(folder)]
    print("Next:")
    print(f'  export {TRAINERS_VARIABLE}="{os.pathsep.join([str(folder), *parts])}"')
    print(f"  nnunet_ext check {name} --quick")
    print(f"  nnunet_ext plan -d DATASET -tr {name}")
    return 0
