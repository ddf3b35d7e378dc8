"""README and the pages of docs, and the commands in them."""

import re

from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text()


def page(name):
    """The text of a page of docs."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def blocks(text, language):
    """Contents of the text's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def block(text, language, part):
    """The one code block in a language that contains the part."""
    (found,) = [one.strip() for one in blocks(text, language) if part in one]
    return found
