"""Hooks of MkDocs: the parts of the site that are made from the code and the repository when it is built.

`<!-- command line -->` becomes the reference of the commands, made from their parsers; `<!-- include: FILE -->` becomes
the text of a file beside `docs`. A link from a page to such a file, a CSV for instance, leads to a copy in the site.
"""

import argparse
import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from nnunet_ext.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
COPIES = "repository"
"""Folder of the site for files from outside `docs`."""
_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
_INCLUDE = re.compile(r"<!-- include: (\S+) -->")
_COMMAND_LINE = "<!-- command line -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds copies of the files outside `docs` that pages link to."""
    for page in files.documentation_pages():
        for _, path, _ in _LINK.findall(_included(page.content_string, page.src_uri)):
            outside = _outside(path, page.src_uri)
            if outside and files.get_file_from_path(f"{COPIES}/{outside}") is None:
                copy = File.generated(config, f"{COPIES}/{outside}", abs_src_path=str(ROOT / outside))
                copy.inclusion = InclusionLevel.NOT_IN_NAV
                files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what is generated, and leads links out of `docs` to the copies."""
    uri = page.file.src_uri
    text = _included(markdown, uri).replace(_COMMAND_LINE, "\n".join(_command_line()))

    def link(match: re.Match) -> str:
        outside = _outside(match.group(2), uri)
        target = posixpath.relpath(f"{COPIES}/{outside}", posixpath.dirname(uri)) if outside else match.group(2)
        return f"{match.group(1)}{target}{match.group(3)}"

    return _LINK.sub(link, text)


def _included(text: str, uri: str) -> str:
    """The text with included files; their links are made relative to the page."""

    def include(match: re.Match) -> str:
        file = ROOT / "docs" / posixpath.dirname(uri) / match.group(1)
        base = posixpath.dirname(match.group(1))
        return _LINK.sub(
            lambda link: f"{link.group(1)}{posixpath.normpath(posixpath.join(base, link.group(2)))}{link.group(3)}",
            file.read_text(),
        ).replace("](../docs/", "](")

    return _INCLUDE.sub(include, text)


def _outside(path: str, uri: str) -> str | None:
    """Path in the repository of a file outside `docs` that a page links to; None for other links."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), path))
    return target if not target.startswith(("docs/", "..")) and (ROOT / target).is_file() else None


def _command_line() -> Iterator[str]:
    """Every command with its usage and a table of its options, from its parser."""
    for name, module in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"nnunet_ext {name}", formatter_class=_Formatter)
        module.add_arguments(parser)
        yield f"## {name}\n\n{_escaped((module.__doc__ or '').strip())}\n"
        yield f"```text\n{parser.format_usage().strip()}\n```\n"
        for group in parser._action_groups:
            rows = [_row(parser, action) for action in group._group_actions if action.dest != "help"]
            if rows:
                yield f"{_title(group)}| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
        yield f"{_escaped(parser.epilog or '')}\n"


class _Formatter(argparse.HelpFormatter):
    """argparse's own, whose lines do not depend on the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=78)


def _title(group: argparse._ArgumentGroup) -> str:
    """Title and description of a group that the command's module has named."""
    if group.title in ("options", "positional arguments"):
        return ""
    said = f"{group.title}: {group.description}" if group.description else group.title or ""
    return f"*{_escaped(said)}*\n\n"


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    named = formatter._format_action_invocation(action) if action.option_strings else str(action.metavar or action.dest)
    meaning = formatter._expand_help(action) if action.help else ""
    bar = "&#124;"  # in code between backticks it would end the table's cell on GitHub, or show its backslash here
    return f"| <code>{html.escape(named).replace('|', bar)}</code> | {_escaped(meaning)} |"


def _escaped(text: str) -> str:
    """Plain text as Markdown that shows it unchanged, except for code between backticks."""
    parts = text.split("`")
    parts[::2] = (re.sub(r"([\\*_\[\]|])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2])
    return "`".join(parts)
