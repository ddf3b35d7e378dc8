"""The documentation site: every page is in its nav, it builds strictly, and it is complete without a network."""

import contextlib
import html
import re
import subprocess
import sys

import pytest

from nnunet_ext.cli.main import main
from tests.helpers.paths import ROOT

CONFIGURATION = (ROOT / "mkdocs.yml").read_text()


def test_every_page_is_in_the_nav():
    nav = re.findall(r": (\S+\.md)$", CONFIGURATION.split("\nnav:\n")[1], re.M)
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert len(nav) == len(set(nav))
    assert set(nav) == pages


def test_continuous_integration_builds_it():
    for file in (".ci/run", "Makefile", ".github/workflows/docs.yml"):
        assert "mkdocs build --strict" in (ROOT / file).read_text()


@pytest.mark.slow
def test_it_builds_and_is_complete(tmp_path, capsys):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for file in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]*)', file.read_text())
        assert loaded == [], file
    assert list(tmp_path.glob("search/search_index.json"))

    reference = html.unescape((tmp_path / "cli" / "index.html").read_text())
    for name in re.findall(r"^    ([a-z-]{3,})\s", helped(capsys), re.M):
        assert f'id="{name}"' in reference
        options = re.findall(r"^  (?:-\w+, )?(-{1,2}[\w-]+)", helped(capsys, name), re.M)
        assert [option for option in options if option not in ("-h", "--help") and option not in reference] == []


def helped(capsys, *command):
    """What `nnunet_ext [COMMAND] --help` prints."""
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return capsys.readouterr().out
