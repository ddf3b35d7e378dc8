"""Copies a plan under another name, so that a repeated training uses the same data but a folder of its own."""

import argparse
import json
from pathlib import Path
from typing import Any

from nnunet_ext.nnunet.json_files import read_json
from nnunet_ext.utils.files import replacing


def copy_plan(source: Path, target: Path, **more: Any) -> None:
    """Writes a copy of a plan under another name; its configurations keep the folders of their preprocessed data.

    Args:
        source: The plan.
        target: The copy, whose stem becomes its name.
        **more: Further entries of the copy.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = read_json(source)
    manager = PlansManager(read_json(source))
    for name in plans["configurations"]:
        plans["configurations"][name]["data_identifier"] = manager.get_configuration(name).data_identifier
    plans |= {"plans_name": target.stem} | more
    with replacing(target, "w") as file:
        json.dump(plans, file, indent=4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    copy_plan(arguments.source, arguments.target)
