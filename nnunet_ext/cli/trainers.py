"""Print the folder with our trainers, for nnU-Net's nnUNet_extTrainer."""

import argparse

from nnunet_ext.nnunet.trainers import trainers_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'export nnUNet_extTrainer="$(nnunet_ext trainers)"'


def run(arguments: argparse.Namespace) -> int:
    print(trainers_folder())
    return 0
