"""Measuring as `nnunet_ext bench` does, with results beside these modules."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ext.bench.measure import CLOCKS, environment, interleaved_seconds, median_ratio, peak_gigabytes, write_csv

__all__ = ["CLOCKS", "RESULTS", "environment", "interleaved_seconds", "median_ratio", "peak_gigabytes", "write_rows"]

RESULTS = Path(__file__).parent / "results"


def write_rows(name: str, rows: Sequence[Mapping[str, object]], where: Mapping[str, str] | None = None) -> Path:
    """Prints the rows and writes them to benchmarks/results/NAME.csv; see `write_csv`."""
    return write_csv(RESULTS / f"{name}.csv", rows, where)
