"""Print a shell's completion of the command `nnunet_ext`."""

import argparse

_SHELLS = ("bash", "zsh", "tcsh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS)
    parser.epilog = (
        "For bash: nnunet_ext completion bash > ~/.local/share/bash-completion/completions/nnunet_ext. "
        "Needs `nnunet_ext[completion]`."
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError as error:
        remedy = "pip install 'nnunet_ext[completion]'"
        raise ValueError(f"completion needs shtab, which is not installed: {remedy}") from error
    from nnunet_ext.cli.main import make_parser

    print(shtab.complete(make_parser()[0], arguments.shell))
    return 0
