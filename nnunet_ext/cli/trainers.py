"""Print the folder with our trainers, for nnU-Net's nnUNet_extTrainer; or list them."""

import argparse
import json

from nnunet_ext.nnunet.trainers import trainer_summaries, trainers_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="store_true", help="list the trainers, each with what it trains")
    parser.add_argument("--json", action="store_true", help="with --list: print JSON")
    parser.epilog = 'export nnUNet_extTrainer="$(nnunet_ext trainers)"'


def run(arguments: argparse.Namespace) -> int:
    if arguments.json and not arguments.list:
        raise ValueError("--json belongs to --list; add it")
    if not arguments.list:
        print(trainers_folder())
        return 0
    summaries = trainer_summaries()
    if arguments.json:
        print(json.dumps(summaries, indent=2))
        return 0
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        print(f"{name:<{width}}  {summary}")
    return 0
