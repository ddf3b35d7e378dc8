"""List the networks with their trainers, parameters and multiply-adds."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.nnunet.dataset_json import read_dataset_json
from nnunet_ext.nnunet.json_files import read_plans
from nnunet_ext.nnunet.trainers import check_trainers_exist

PAPER_SETTINGS = Path(__file__).with_name("networks.json")
"""What `network_costs` finds at the papers' settings, which depend on no data; tracing them takes ten seconds.

Made by ``python -c "import json; from nnunet_ext.profiling.counts import network_costs; print(json.dumps(
network_costs(None, ''), indent=2))"``. Tests hold it to the registry and to the traced sizes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--plans", help="plans file with its dataset.json in the same folder (default: the papers' settings)"
    )
    parser.add_argument(
        "-tr",
        "--trainers",
        nargs="+",
        metavar="TR",
        help="networks of these trainers instead, your own for instance; needs --plans",
    )
    parser.add_argument(
        "-c", "--configuration", default="3d_fullres", help="configuration of the plan (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    if arguments.trainers is not None and arguments.plans is None:
        raise ValueError("--trainers needs --plans: a trainer builds its network from a plan")
    check_trainers_exist(arguments.trainers or [])
    plans = Path(arguments.plans) if arguments.plans else None
    if plans is not None:  # their errors name the file and the key
        read_plans(plans)
        read_dataset_json(plans.parent / "dataset.json", "channel_names")
    rows = _rows(plans, arguments.configuration, arguments.trainers)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    print("Setting:", f"{arguments.plans}, {arguments.configuration}" if arguments.plans else "the paper's")
    for row in rows:
        print(
            f"\n{row['network']} ({row['name']})\n"
            f"  trainers       {', '.join(row['trainers'])}\n"
            f"  variants       {', '.join(row['variants']) or 'none'}\n"
            f"  patch          {' x '.join(map(str, row['patch_size']))}, {row['input_channels']} channel(s) in, "
            f"{row['num_classes']} out\n"
            f"  parameters     {row['parameters']:,}\n"
            f"  multiply-adds  {row['multiply_adds'] / 1e9:.1f} G (convolutions and matrix products, one forward pass)"
        )
    return 0


def _rows(plans: Path | None, configuration: str, trainers: Sequence[str] | None) -> list[dict[str, Any]]:
    if plans is None:
        return json.loads(PAPER_SETTINGS.read_text(encoding="utf-8"))
    from nnunet_ext.profiling.counts import network_costs, trainer_costs

    return network_costs(plans, configuration) if trainers is None else trainer_costs(trainers, plans, configuration)
