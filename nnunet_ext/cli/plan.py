"""Plan a dataset for a trainer by the traced memory of its training; writes a plans file for nnU-Net."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", required=True, help="number or name of nnU-Net's dataset")
    parser.add_argument("-tr", "--trainer", required=True, help="one of ours, of nnU-Net's, or your own")
    parser.add_argument(
        "--gpu-memory", type=float, default=24, metavar="GB", help="of which 10%% are left free (default: %(default)s)"
    )
    parser.add_argument("--plans-name", help="default: after the trainer, as in nnUNetSASANPlans")
    parser.add_argument(
        "--overwrite-target-spacing",
        type=float,
        nargs=3,
        metavar="MM",
        help="of 3d_fullres, in the order in which nnU-Net reads the axes (default: nnU-Net's choice)",
    )
    parser.add_argument(
        "-c", "--configurations", nargs="+", metavar="C", help="of 2d, 3d_fullres, 3d_lowres (default: all)"
    )
    parser.add_argument(
        "--preset", choices=["paper"], help="plan the paper's own setting, whatever memory it takes, instead"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the decisions, write no plans file")


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.planning.run import plan

    plan(
        arguments.dataset,
        arguments.trainer,
        arguments.gpu_memory,
        arguments.plans_name,
        arguments.overwrite_target_spacing,
        arguments.configurations,
        arguments.preset is not None,
        arguments.dry_run,
    )
    return 0
