"""Measurements with the tools of `nnunet_ext bench`, whose results go to benchmarks/results."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nnunet_ext.bench.measure import (
    CLOCKS,
    environment,
    interleaved_seconds,
    median_ratio,
    peak_gigabytes,
    spread_columns,
    time_columns,
    write_csv,
)

__all__ = [
    "RESULTS",
    "add_timing_options",
    "begin",
    "check_equal",
    "environment",
    "interleaved_seconds",
    "median_ratio",
    "peak_gigabytes",
    "plain_row",
    "time_columns",
    "write_csv",
    "write_rows",
]

RESULTS = Path(__file__).parent / "results"


def write_rows(name: str, rows: Sequence[Mapping[str, object]], where: Mapping[str, str] | None = None) -> Path:
    """Prints the rows and writes them to benchmarks/results/NAME.csv; see `write_csv`."""
    return write_csv(RESULTS / f"{name}.csv", rows, where)


def add_timing_options(parser: argparse.ArgumentParser, repeats: int, threads: int = 2) -> None:
    """Adds --threads, --repeats and --clock; see `begin`."""
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="processor: CPU time of one thread")


def begin(arguments: argparse.Namespace) -> dict[str, str]:
    """Sets the number of threads and returns the columns that every row then records."""
    torch.set_num_threads(arguments.threads)
    return {"clock": arguments.clock, **environment()}


def check_equal(what: str, ours: Tensor, plain: Tensor, tolerance: float) -> None:
    """Raises RuntimeError if two forms differ by NaN or, relative to the largest value, by more than `tolerance`."""
    error = ((ours - plain).abs().max() / plain.abs().max()).item()
    if not error <= tolerance:
        raise RuntimeError(f"{what}: the two forms differ by {error:.1e}: nothing to compare")


def plain_row(
    what: str,
    setting: str,
    ours: Callable[[], object],
    plain: Callable[[], object],
    repeats: int,
    warm_up: int = 1,
    clock: str = "wall",
) -> dict[str, object]:
    """A row with our implementation against its naive reference, run in turns, in float32."""
    times = interleaved_seconds({"ours": ours, "plain": plain}, repeats, warm_up, clock)
    return {
        "what": what,
        "setting": setting,
        "precision": "float32",
        "seed": 0,
        "repeats": repeats,
        **spread_columns(times["plain"], "s", digits=3, prefix="plain_"),
        **spread_columns(times["ours"], "s", digits=3, prefix="ours_"),
        "times_faster": f"{median_ratio(times['plain'], times['ours']):.2f}",
    }
