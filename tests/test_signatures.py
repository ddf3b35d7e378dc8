"""Functions have at most five positional parameters, so that longer calls name their arguments."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 5
FILES = [file for folder in ("nnunet_ext", "trainers", "plans") for file in sorted((ROOT / folder).rglob("*.py"))]
OPERATORS = "nnunet_ext/ops/"
"""Operators take the tensors of their equation in its order, as torch.library, ctypes and Triton pass them."""
VOCABULARY = "nnU-Net's constructor vocabulary in its order, a promise of version 0.1.0"
GIVEN = {
    **{
        f"{network}.__init__": VOCABULARY
        for network in ("SASAN", "EMNet", "_SliceNetwork", "FAFNet", "MTUNet", "UMamba")
    },
    "SelfUpdatingLoss.__init__": "a promise of version 0.1.0",
    "supervoxels": "a promise of version 0.1.0",
    "TracedPlanner.__init__": "nnU-Net's planner",
    "TracedPlanner.static_estimate_VRAM_usage": "nnU-Net's planner",
}
"""Functions that others call, by the code that sets their signature."""


def functions(tree):
    """Every function of a module with its qualified name."""
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef):
                yield f"{parent.name}.{node.name}" if isinstance(parent, ast.ClassDef) else node.name, node


def positional(function):
    """Number of positional parameters besides self and cls."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def too_many(text):
    """Functions with more than `MOST` positional parameters."""
    return [name for name, node in functions(ast.parse(text)) if positional(node) > MOST and name not in GIVEN]


def test_further_parameters_are_keywords():
    found = {str(file.relative_to(ROOT)): too_many(file.read_text()) for file in FILES}
    assert {file: names for file, names in found.items() if names and not file.startswith(OPERATORS)} == {}


def test_the_check_finds_what_it_looks_for():
    assert too_many("def f(a, b, c, d, e, f): pass") == ["f"]
    assert too_many("class A:\n    def f(self, a, b, c, d, e): pass") == []
    assert too_many("class A:\n    def f(self, a, b, c, d, e, g): pass") == ["A.f"]
    assert too_many("def f(a, *, b, c, d, e, f, g): pass") == []
