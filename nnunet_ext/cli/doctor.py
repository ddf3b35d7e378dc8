"""Check the installation, with a remedy for everything that is missing."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from nnunet_ext.utils.devices import DEVICES, choose_device

if TYPE_CHECKING:
    from nnunet_ext.device_check import Row
    from nnunet_ext.doctor import Check

_MARKS = {"ok": "ok     ", "missing": "MISSING", "optional": "absent "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="run every operator and a training step of every network, eager and compiled (on the CPU: traced), "
        "against references; prints a table of errors and times (minutes)",
    )
    parser.add_argument(
        "-device", "--device", choices=DEVICES, default="auto", help="device for --check (default: auto)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.epilog = "Exit code 1 if something needed is missing, or if --check finds something wrong."


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.doctor import diagnose

    checks = diagnose()
    missing = sum(check.state == "missing" for check in checks)
    if arguments.json:
        rows = list(_check(arguments.device)) if arguments.check else None
        wrong = sum(bool(row.reason) for row in rows or ())
        content = {
            "installation": [asdict(check) for check in checks],
            "check": None if rows is None else [asdict(row) for row in rows],
            "passed": not missing and not wrong,
        }
        print(json.dumps(content, indent=2))
    else:
        _print_installation(checks)
        wrong = _print_check(_check(arguments.device), choose_device(arguments.device)) if arguments.check else 0
    return 1 if missing or wrong else 0


def _check(wanted: str) -> "Iterator[Row]":
    from nnunet_ext.device_check import run

    return run(choose_device(wanted))


def _print_installation(checks: "Sequence[Check]") -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{_MARKS[check.state]} {check.name:<{width}}  {check.found}")
        if check.remedy:
            print(f"        {'':<{width}}  -> {check.remedy}")
    missing = sum(check.state == "missing" for check in checks)
    print(f"\n{missing} needed thing(s) missing." if missing else "\nEverything needed is installed.")


def _print_check(rows: "Iterator[Row]", device: str) -> int:
    """Prints the rows as they come; returns the number of wrong ones."""
    print(f"\n{'':<7} {'what':<20} {'on':<26} {'error':>9} {'limit':>9} {'seconds':>8}")
    wrong = 0
    for row in rows:
        wrong += bool(row.reason)
        error = "-" if row.error is None else f"{row.error:.1e}"
        mark = "WRONG" if row.reason else "ok"
        print(f"{mark:<7} {row.name:<20} {row.how:<26} {error:>9} {row.limit:>9.1e} {row.seconds:>8.2f}", flush=True)
        if row.reason:
            print(f"        -> {row.reason}")
    print(f"\n{wrong} wrong." if wrong else f"\nEverything computes what it should on {device}.")
    return wrong
