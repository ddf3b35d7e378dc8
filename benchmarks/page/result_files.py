"""Reads the committed CSV files and summarises in one line where they were measured."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Row = Mapping[str, str]
Rows = Sequence[Row]


class Results:
    """The CSV files of a folder.

    Args:
        folder: Folder with the files NAME.csv.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, name: str) -> list[dict[str, str]]:
        """Rows of NAME.csv; empty if the file does not exist."""
        path = self.folder / f"{name}.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def names(self) -> list[str]:
        """Names of the files without extension, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.csv"))


def in_order(values: Iterable[T]) -> list[T]:
    """Distinct values in order of first appearance."""
    return list(dict.fromkeys(values))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a final newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(f" {cell} " if cell != "---" else cell for cell in line) + "|" for line in lines)


def measured_where(rows: Sequence[Row]) -> str:
    """Device, processor, threads, versions, date and commit of the rows, as `environment` recorded them."""
    processors = f" ({_values(rows, 'processor')})" if _values(rows, "processor") else ""
    parts = [f"{_values(rows, 'device')}{processors}"] if _values(rows, "device") else []
    threads = _values(rows, "threads")
    if threads:
        parts.append(f"{threads} thread{'' if threads == '1' else 's'}")
    if _values(rows, "clock") == "processor":
        parts.append("processor seconds")
    parts += [f"{key} {_values(rows, key)}" for key in ("torch", "nnunetv2", "python") if _values(rows, key)]
    if _values(rows, "kernels"):
        parts.append(f"kernels {_values(rows, 'kernels')}")
    if _values(rows, "repeats"):
        parts.append(f"median of {_values(rows, 'repeats')}")
    for prefix, key in (("", "date"), ("commit ", "commit")):
        if _values(rows, key):
            parts.append(f"{prefix}{_values(rows, key)}")
    return "; ".join(parts)


def _values(rows: Sequence[Row], key: str) -> str:
    return ", ".join(sorted({row[key] for row in rows if row.get(key)}))
