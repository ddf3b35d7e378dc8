"""Measuring as `nnunet_ext bench` does, with results beside these modules."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_ext.bench.measure import CLOCKS, environment, interleaved_seconds, median_ratio, peak_gigabytes, write_csv

__all__ = [
    "CLOCKS",
    "RESULTS",
    "environment",
    "interleaved_seconds",
    "median_ratio",
    "peak_gigabytes",
    "plain_row",
    "write_csv",
    "write_rows",
]

RESULTS = Path(__file__).parent / "results"


def write_rows(name: str, rows: Sequence[Mapping[str, object]], where: Mapping[str, str] | None = None) -> Path:
    """Prints the rows and writes them to benchmarks/results/NAME.csv; see `write_csv`."""
    return write_csv(RESULTS / f"{name}.csv", rows, where)


def plain_row(
    what: str,
    setting: str,
    ours: Callable[[], object],
    plain: Callable[[], object],
    repeats: int,
    warm_up: int = 1,
) -> dict[str, object]:
    """A row of what is ours against a plain transcription of its formulas, run in turn, in float32."""
    times = interleaved_seconds({"ours": ours, "plain": plain}, repeats, warm_up)
    return {
        "what": what,
        "setting": setting,
        "precision": "float32",
        "seed": 0,
        "plain_s": f"{statistics.median(times['plain']):.3f}",
        "ours_s": f"{statistics.median(times['ours']):.3f}",
        "ours_min_s": f"{min(times['ours']):.3f}",
        "ours_max_s": f"{max(times['ours']):.3f}",
        "times_faster": f"{median_ratio(times['plain'], times['ours']):.2f}",
    }
