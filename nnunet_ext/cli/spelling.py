"""Options in other spellings: nnU-Net's underscores and single dashes, and its names for the same things."""

import argparse
from collections.abc import Sequence

_NNUNET = {
    "fold": "folds",
    "gpu-memory-target": "gpu-memory",
    "overwrite-plans-name": "plans-name",
    "dataset-id": "dataset",
    "dataset-name-or-id": "dataset",
}
"""nnU-Net's names of options that have other names here."""


def respelled(arguments: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Arguments of a command with all options in the spelling that its parser knows.

    An option may begin with one dash or two and have dashes or underscores: ``-step_size``, ``--step-size``. Options
    that the parser does not know in any spelling are left as they are.
    """
    known = {option for action in parser._actions for option in action.option_strings}
    by_name = {_name(option): option for option in sorted(known, reverse=True)}  # a short option gives way to a long
    result: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[position:]]
        option, equals, value = argument.partition("=")
        name = _name(option)
        if option.startswith("-") and option not in known and len(name) > 1:
            option = by_name.get(name) or by_name.get(_NNUNET.get(name, ""), option)
        result.append(f"{option}{equals}{value}")
    return result


def _name(option: str) -> str:
    return option.lstrip("-").replace("_", "-")
