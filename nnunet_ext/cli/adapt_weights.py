"""Adapt trained weights to another plan: patch, spacing, channels, classes, stages."""

import argparse
import json
from pathlib import Path

from nnunet_ext.nnunet.dataset_json import read_dataset_json
from nnunet_ext.nnunet.json_files import read_plans
from nnunet_ext.nnunet.trainers import check_trainers_exist


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, help="checkpoint of a training, or a file that import-weights wrote")
    parser.add_argument("output", type=Path, help="file to write, for nnUNetv2_train ... -pretrained_weights")
    parser.add_argument(
        "-p", "--plans", type=Path, required=True, help="plans file, with dataset.json in the same folder"
    )
    parser.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    parser.add_argument(
        "-tr", "--trainer", help="trainer of the same network (default: the one that wrote the checkpoint)"
    )
    parser.add_argument("--json", action="store_true", help="print what became of every weight as JSON")


def run(arguments: argparse.Namespace) -> int:
    if arguments.trainer is not None:
        check_trainers_exist([arguments.trainer])
    read_plans(arguments.plans)  # the errors name the file and the key
    read_dataset_json(arguments.plans.parent / "dataset.json", "channel_names")
    from nnunet_ext.weights.adapting.report import report_text
    from nnunet_ext.weights.adapting.run import adapt_file

    adapted = adapt_file(arguments.input, arguments.output, arguments.plans, arguments.configuration, arguments.trainer)
    if arguments.json:
        print(json.dumps(adapted.as_json(), indent=2))
        return 0
    network = adapted.network
    patch = " x ".join(map(str, getattr(network, "patch_size", None) or ()))
    print(f"wrote {adapted.output}: {type(network).__name__}{f' for a patch of {patch}' if patch else ''}\n")
    print(report_text(adapted.rows))
    print(f"\ntrain with -tr {adapted.trainer} -p {adapted.plans} -pretrained_weights {adapted.output}")
    return 0
