"""Plan a dataset for a trainer by the traced memory of its training; writes a plans file for nnU-Net."""

import argparse
import json
import sys
from contextlib import nullcontext, redirect_stdout

from nnunet_ext.nnunet.trainers import check_trainers_exist
from nnunet_ext.planning.arguments import check_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", required=True, help="number or name of nnU-Net's dataset")
    parser.add_argument("-tr", "--trainer", required=True, help="one of ours, of nnU-Net's, or your own")
    parser.add_argument(
        "--gpu-memory",
        type=float,
        default=24,
        metavar="GB",
        help="GPU memory; 10%% of it is left free (default: %(default)s)",
    )
    parser.add_argument(
        "--plans-name", help="name of the plans (default: derived from the trainer, as in nnUNetSASANPlans)"
    )
    parser.add_argument(
        "--overwrite-target-spacing",
        type=float,
        nargs=3,
        metavar="MM",
        help="target spacing of 3d_fullres, in the order in which nnU-Net reads the axes (default: nnU-Net's choice)",
    )
    parser.add_argument(
        "-c", "--configurations", nargs="+", metavar="C", help="any of 2d, 3d_fullres, 3d_lowres (default: all)"
    )
    parser.add_argument(
        "--preset", choices=["paper"], help="plan the paper's own setting instead, however much memory it needs"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the decisions, write no plans file")
    parser.add_argument("--json", action="store_true", help="print the decisions as JSON")


def run(arguments: argparse.Namespace) -> int:
    check_arguments(arguments.gpu_memory, arguments.overwrite_target_spacing, arguments.configurations)
    check_trainers_exist([arguments.trainer])
    from nnunet_ext.planning import run as planning
    from nnunet_ext.plans import planner_for

    # nnU-Net prints while it plans; with --json, standard output has the JSON only.
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        decisions = planning.run(
            arguments.dataset,
            arguments.trainer,
            planner_for,
            gpu_memory=arguments.gpu_memory,
            plans_name=arguments.plans_name,
            spacing=arguments.overwrite_target_spacing,
            configurations=arguments.configurations,
            preset=arguments.preset is not None,
            dry_run=arguments.dry_run,
        )
        content = json.dumps(decisions.as_json(), indent=2) if arguments.json else decisions.text()
    print(content)
    return 0
