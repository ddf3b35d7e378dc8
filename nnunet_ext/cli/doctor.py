"""Check the installation and say what to do about what is missing."""

import argparse

_MARKS = {"ok": "ok     ", "missing": "MISSING", "optional": "absent "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit code 1 if something needed is missing."


def run(arguments: argparse.Namespace) -> int:
    from nnunet_ext.doctor import diagnose

    checks = diagnose()
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{_MARKS[check.state]} {check.name:<{width}}  {check.found}")
        if check.remedy:
            print(f"        {'':<{width}}  -> {check.remedy}")
    missing = sum(check.state == "missing" for check in checks)
    print(f"\n{missing} needed thing(s) missing." if missing else "\nEverything needed is there.")
    return 1 if missing else 0
