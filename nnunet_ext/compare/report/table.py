"""A table of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: Heading.
        heads: Heads of the columns.
        rows: Text of the cells.
        text_columns: Numbers of the columns of text, aligned to the left; the others hold numbers.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)
