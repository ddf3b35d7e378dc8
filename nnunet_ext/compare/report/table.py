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
        words: Columns of words, aligned to the left; the others hold numbers.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
