"""What became of each weight, and the table of it."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["taken", "adapted", "left", "unused", "setting"]
FATES: dict[Fate, str] = {
    "taken": "taken unchanged",
    "adapted": "adapted",
    "left": "left at their initial values",
    "unused": "in the file only",
    "setting": "settings to consider",
}
"""What may become of a weight, as the table says it; a setting is no weight, but decides what weights do."""
_KINDS = (".weight", ".bias")


@dataclass(frozen=True)
class Row:
    """What became of one weight.

    Attributes:
        name: Name in the state dict.
        fate: One of `FATES`.
        how: How it was adapted, or why it was left; empty for those taken.
        part: Path of the layer that was treated as a whole; empty: the weight was treated alone.
        old: Shape in the file; None if it has none.
        new: Shape in the network; None if it has none.
    """

    name: str
    fate: Fate
    how: str = ""
    part: str = ""
    old: tuple[int, ...] | None = None
    new: tuple[int, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "fate": self.fate, "how": self.how, "old": self.old, "new": self.new}


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Number of weights of each fate."""
    return {fate: sum(row.fate == fate for row in rows) for fate in FATES}


def report_text(rows: Sequence[Row], width: int = 120) -> str:
    """A table of what was adapted and left; layers whose names differ in numbers alone share a line."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", box=None, pad_edge=False)
    table.add_column("number", justify="right")
    table.add_column("weights", overflow="fold")
    table.add_column("how, or why", overflow="fold")
    total = counts(rows)
    for fate, title in FATES.items():
        if not total[fate]:
            continue
        table.add_row(title, str(total[fate]))
        if fate == "taken":
            continue
        groups = Counter((_layer(row), row.how) for row in rows if row.fate == fate)
        for (names, how), number in groups.items():
            table.add_row("", str(number), names, how)
    output = io.StringIO()
    Console(file=output, width=width).print(table)
    return output.getvalue().rstrip()


def _layer(row: Row) -> str:
    """decoder.stages.* for decoder.stages.0.weight and decoder.stages.1.bias."""
    name = row.part or row.name
    for kind in _KINDS:
        name = name.removesuffix(kind)
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
