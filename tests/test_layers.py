"""The layers: import-linter's contracts of pyproject.toml, and the two folders that it cannot see."""

import ast

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from tests.helpers.paths import ROOT

ALLOWED = {
    "trainers": {"losses", "networks", "training"},
    "plans": {"networks", "nnunet", "planning", "plans"},
}
"""Packages that the modules of the folders may import; nnU-Net imports every module of `trainers` by its file name."""
UPPER = {"nnunet_ext.plans", "nnunet_ext.trainers"}


def imported(file):
    """Modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_contracts_are_kept(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize("folder", ALLOWED)
def test_trainers_and_plans_import_downwards(folder):
    files = sorted((ROOT / folder).glob("*.py"))
    assert files
    for file in files:
        ours = {name.split(".")[1] for name in imported(file) if name.startswith("nnunet_ext.")}
        assert ours <= ALLOWED[folder], file.name


def test_only_the_command_line_imports_plans_and_trainers():
    files = [file for file in (ROOT / "nnunet_ext").rglob("*.py") if file.parent.name != "cli"]
    found = {file.name for file in files for name in imported(file) if ".".join(name.split(".")[:2]) in UPPER}
    assert not found


def test_optional_libraries_of_networks_are_imported_by_name_only():
    """nnU-Net imports every trainer to find one, and a missing library would break them all."""
    files = [*(ROOT / "nnunet_ext").rglob("*.py"), *(ROOT / "trainers").glob("*.py")]
    found = {file.name for file in files for name in imported(file) if name.partition(".")[0] == "monai"}
    assert not found
