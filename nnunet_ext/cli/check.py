"""Check that a trainer and its network work with all that nnU-Net and this package do with them."""

import argparse
from pathlib import Path

from nnunet_ext.nnunet.trainers import check_trainers_exist
from nnunet_ext.utils.devices import DEVICES, choose_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trainer", help="your own trainer, in a folder of nnUNet_extTrainer; or ours, or nnU-Net's")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-d", "--dataset", help="check on the plans of this dataset (default: on small ones of our own)")
    where.add_argument(
        "-p", "--plans", metavar="FILE", help="check on this plans file, with dataset.json in the same folder"
    )
    parser.add_argument(
        "-device", "--device", choices=DEVICES, default="cpu", help="default: cpu, on which a check takes minutes"
    )
    parser.add_argument("--quick", action="store_true", help="leave out compilation, two ranks and the tiny training")
    parser.epilog = "Exit code 1 if something failed; the reason and a remedy stand below the table's line."


def run(arguments: argparse.Namespace) -> int:
    check_trainers_exist([arguments.trainer])
    from nnunet_ext.check.run import run as check

    plans = Path(arguments.plans) if arguments.plans else _plans_of(arguments.dataset, arguments.trainer)
    failed = 0
    print(f"{'':<8} {'check':<23} {'setting':<13} {'seconds':>7}")
    for row in check(arguments.trainer, plans, choose_device(arguments.device), arguments.quick):
        failed += row.state == "FAILED"
        print(f"{row.state:<8} {row.check:<23} {row.setting:<13} {row.seconds:>7.1f}", flush=True)
        if row.reason:
            print(f"         {row.reason}", flush=True)
        if row.remedy:
            print(f"         -> {row.remedy}", flush=True)
    print(f"\n{failed} failed." if failed else f"\n{arguments.trainer} works.")
    return 1 if failed else 0


def _plans_of(dataset: str | None, trainer: str) -> Path | None:
    """The trainer's plans of a dataset, or nnU-Net's; None without a dataset."""
    if dataset is None:
        return None
    from nnunetv2.paths import nnUNet_preprocessed

    from nnunet_ext.nnunet.datasets import dataset_name
    from nnunet_ext.nnunet.trained_model import default_plans

    name = dataset_name(dataset)
    files = [Path(nnUNet_preprocessed, name, f"{plans}.json") for plans in (default_plans(trainer), "nnUNetPlans")]
    for file in files:
        if file.is_file():
            return file
    raise ValueError(f"-d {dataset}: none of {', '.join(map(str, files))} is there; nnunet_ext plan writes the first")
