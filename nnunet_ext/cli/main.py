"""Entry point of the command `nnunet_ext`."""

import argparse
import sys
from collections.abc import Sequence

from nnunet_ext import __version__
from nnunet_ext.cli import (
    bench,
    check,
    compare,
    crossval,
    demo,
    doctor,
    fewshot,
    import_weights,
    networks,
    new,
    plan,
    predict,
    trainers,
)

_COMMANDS = {
    "trainers": trainers,
    "doctor": doctor,
    "networks": networks,
    "new": new,
    "check": check,
    "plan": plan,
    "predict": predict,
    "fewshot": fewshot,
    "import-weights": import_weights,
    "compare": compare,
    "bench": bench,
    "demo": demo,
    "crossval": crossval,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; a user's mistake gives one line on stderr and exit code 2, a failed run exit code 1."""
    parser = argparse.ArgumentParser(prog="nnunet_ext", description="Published segmentation networks for nnU-Net v2.")
    parser.add_argument("--version", action="version", version=f"nnunet_ext {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        text = (module.__doc__ or "").strip()
        sub = subparsers.add_parser(name, help=text.splitlines()[0], description=text)
        module.add_arguments(sub)
    arguments = parser.parse_args(argv)
    try:
        return _COMMANDS[arguments.command].run(arguments)
    except (ValueError, OSError) as error:
        print(f"nnunet_ext {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nnnunet_ext {arguments.command}: interrupted", file=sys.stderr)
        return 130
