"""Entry point of the command `nnunet_ext`."""

import argparse
import sys
from collections.abc import Sequence

from nnunet_ext import __version__
from nnunet_ext.cli import (
    adapt_weights,
    bench,
    check,
    compare,
    completion,
    convert,
    crossval,
    demo,
    doctor,
    export,
    fewshot,
    import_weights,
    install,
    networks,
    new,
    pack,
    plan,
    predict,
    trainers,
)
from nnunet_ext.cli.border import is_users_mistake, nobody_reads, warnings_of_ours
from nnunet_ext.cli.spelling import respelled

COMMANDS = {
    "trainers": trainers,
    "doctor": doctor,
    "networks": networks,
    "new": new,
    "check": check,
    "convert": convert,
    "plan": plan,
    "predict": predict,
    "fewshot": fewshot,
    "export": export,
    "import-weights": import_weights,
    "pack": pack,
    "install": install,
    "adapt-weights": adapt_weights,
    "compare": compare,
    "bench": bench,
    "demo": demo,
    "crossval": crossval,
    "completion": completion,
}
"""Modules of the subcommands, by name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; a user's mistake gives one line on stderr and exit code 2, a failed run exit code 1.

    An error that is no user's mistake keeps its traceback. If the reader of the output has gone, as `head` does, the
    command ends silently.
    """
    parser, subparsers = make_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in given if word in subparsers), None)
    if command is not None:
        start = given.index(command) + 1
        given[start:] = respelled(given[start:], subparsers[command])
    arguments = parser.parse_args(given)
    try:
        with warnings_of_ours():
            code = COMMANDS[arguments.command].run(arguments)
            sys.stdout.flush()
            return code
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            return 128 + 13  # as a shell gives it for a program that SIGPIPE ends
        if not is_users_mistake(error):
            raise
        print(f"nnunet_ext {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nnnunet_ext {arguments.command}: interrupted", file=sys.stderr)
        return 130


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command's parser, and those of its subcommands."""
    parser = argparse.ArgumentParser(prog="nnunet_ext", description="Published segmentation networks for nnU-Net v2.")
    parser.add_argument("--version", action="version", version=f"nnunet_ext {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {}
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").strip()
        commands[name] = subparsers.add_parser(name, help=text.splitlines()[0], description=text)
        module.add_arguments(commands[name])
    return parser, commands
