"""Calls that can be read: functions of the package have at most five positional parameters."""

import ast
from pathlib import Path

import nnunet_ext

PACKAGE = Path(nnunet_ext.__file__).parent
MOST = 5
GIVEN = {
}


def positional_parameters(file):
    """Name and number of positional parameters, without self and cls, of every function in a file."""
    for parent in ast.walk(ast.parse(file.read_text())):
        for node in getattr(parent, "body", []) if not isinstance(parent, ast.Lambda) else []:
            if isinstance(node, ast.FunctionDef):
                owner = f"{parent.name}." if isinstance(parent, ast.ClassDef) else ""
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                yield owner + node.name, len(names) - (bool(names) and names[0] in ("self", "cls", "ctx")), node
