"""Measurements with the tools of `nnunet_ext bench`, whose results go to benchmarks/results."""

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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

Row = Mapping[str, object]
Forms = Mapping[str, Callable[[], Callable[[], object]]]
"""Functions by the name of a form, which prepare the call to measure."""
RESULTS = Path(__file__).parent / "results"
FLOAT32 = {"precision": "float32", "seed": 0}
"""Columns of rows that are measured in float32 on seeded data."""
BACKWARD = {"forward": False, "forward + backward": True}
"""Calls that are measured, and whether they include the backward pass."""


def write_rows(name: str, rows: Sequence[Mapping[str, object]], where: Mapping[str, str] | None = None) -> Path:
    """Prints the rows and writes them to benchmarks/results/NAME.csv; see `write_csv`."""
    return write_csv(RESULTS / f"{name}.csv", rows, where)


def timing_parser(document: str | None, repeats: int, threads: int = 2) -> argparse.ArgumentParser:
    """A parser with a module's docstring and the options --threads, --repeats and --clock; see `begin`."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="processor: CPU time of one thread")
    return parser


def begin(arguments: argparse.Namespace) -> dict[str, str]:
    """Sets the number of threads and returns the columns that every row then records."""
    torch.set_num_threads(arguments.threads)
    return {"clock": arguments.clock, **environment()}


def run(name: str, rows: Callable[[argparse.Namespace], Iterable[Row]], parser: argparse.ArgumentParser) -> None:
    """Parses the command line, measures, and writes the rows to benchmarks/results/NAME.csv."""
    arguments = parser.parse_args()
    where = begin(arguments)
    write_rows(name, list(rows(arguments)), where)


def timed_call(compute: Callable[[], Tensor], backward: bool) -> Callable[[], object]:
    """A call of `compute`, without gradients or with a backward pass from the mean square of its result."""

    def forward() -> Tensor:
        with torch.no_grad():
            return compute()

    return (lambda: compute().square().mean().backward()) if backward else forward


def form_columns(
    forms: Forms,
    arguments: argparse.Namespace,
    *,
    ratio: str,
    base: str,
    faster: bool = True,
    memory_of: Collection[str] | None = None,
) -> dict[str, dict[str, object]]:
    """Time and memory columns of several forms of a call, which run in turns.

    Args:
        forms: Module-level functions, or partial ones, that another process can run too.
        arguments: Parsed options of `timing_parser`.
        ratio: Name of the column that relates each form to the `base`.
        base: Name of a form.
        faster: Whether the ratio says how much faster a form is than the base, rather than how much longer it takes.
        memory_of: Forms whose memory is measured; None: all.
    """
    measured = forms if memory_of is None else memory_of
    memory = {form: f"{peak_gigabytes(forms[form])[0]:.2f}" for form in measured}
    calls = {form: prepare() for form, prepare in forms.items()}
    times = interleaved_seconds(calls, arguments.repeats, clock=arguments.clock)
    return {
        form: {
            **time_columns(seconds),
            ratio: f"{median_ratio(*((times[base], seconds) if faster else (seconds, times[base]))):.2f}",
            "added_GB": memory.get(form, ""),
        }
        for form, seconds in times.items()
    }


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
        **FLOAT32,
        "repeats": repeats,
        **spread_columns(times["plain"], "s", digits=3, prefix="plain_"),
        **spread_columns(times["ours"], "s", digits=3, prefix="ours_"),
        "times_faster": f"{median_ratio(times['plain'], times['ours']):.2f}",
    }
