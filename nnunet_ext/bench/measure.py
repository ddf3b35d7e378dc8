"""Interleaved timing in one process, peak memory, and CSV files that record where they were measured."""

import csv
import ctypes
import datetime
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from nnunet_ext import __version__
from nnunet_ext.ops.native import native_library
from nnunet_ext.utils.workers import end_with_parent

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Wall-clock time, and CPU time of this process; with one thread, they differ only by the time that other processes
take."""


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds of each function by one of `CLOCKS`, run in turns `repeats` times so that load affects all alike.

    Raises:
        ValueError: for the processor clock with several threads, whose seconds it would add up.
    """
    if clock == "processor" and torch.get_num_threads() != 1:
        raise ValueError(f"the processor's clock needs one thread, not {torch.get_num_threads()}: --threads 1")
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warm_up + repeats):
        for name, function in functions.items():
            started = now()
            function()
            if turn >= warm_up:
                times[name].append(now() - started)
    return times


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of slow / fast over the turns."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def time_columns(
    seconds: Sequence[float], median: str = "seconds", unit: str = "s", digits: int = 4
) -> dict[str, object]:
    """Columns of a row for the result of `interleaved_seconds`: `spread_columns` and the number of turns."""
    return {**spread_columns(seconds, median, unit, digits), "repeats": len(seconds)}


def spread_columns(
    seconds: Sequence[float], median: str = "seconds", unit: str = "s", digits: int = 4, prefix: str = ""
) -> dict[str, str]:
    """Columns with median, lowest and highest time.

    Args:
        seconds: Seconds of the turns after the warm-up.
        median: Name of the median's column.
        unit: Unit of the columns, "s" or "ms".
        digits: Number of decimals.
        prefix: Prefix of the columns' names.
    """
    shown = {"s": 1.0, "ms": 1e3}[unit]
    values = {median: statistics.median(seconds), f"min_{unit}": min(seconds), f"max_{unit}": max(seconds)}
    return {f"{prefix}{name}": f"{shown * value:.{digits}f}" for name, value in values.items()}


def peak_gigabytes(prepare: Callable[[], Callable[[], object]]) -> tuple[float, float]:
    """Peak resident memory of a call in a fresh process: the increase over the memory held before, and the total.

    Args:
        prepare: Module-level function without arguments that returns the call to measure.
    """
    with multiprocessing.get_context("spawn").Pool(1, end_with_parent) as pool:
        return pool.apply(_peak, (prepare, torch.get_num_threads()))


def _peak(prepare: Callable[[], Callable[[], object]], threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    return _peak_of(prepare())


def added_gigabytes(call: Callable[[], object], device: str = "cpu") -> float | None:
    """Peak memory in GB that a call adds to this process; None if the platform cannot measure it.

    On the CPU this is resident memory, which Linux counts. The call must have run once before, so that memory it keeps
    is not counted. For a training step it includes gradients, but not the weights and the optimiser's state.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    if device != "cpu" or not Path("/proc/self/clear_refs").exists():
        return None
    return _peak_of(call)[0]


def _peak_of(call: Callable[[], object]) -> tuple[float, float]:
    # Memory freed during preparation goes back to the system, or the call could reuse it uncounted. The peak so far,
    # including that of the parent process, is reset.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_bytes("VmRSS")
    call()
    peak = _resident_bytes("VmHWM")
    return (peak - before) / 1e9, peak / 1e9


def _resident_bytes(kind: str) -> int:
    """Resident memory, current ("VmRSS") or at its peak ("VmHWM"), as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1])


_GENERATED = ("benchmarks/results", "docs", "README.md")
"""Files that measurements write; changes to them do not count as changes of the measured code."""


def environment(device: str = "cpu") -> dict[str, str]:
    """Device, software versions, date and commit, which every row of a result records besides its numbers."""
    library = native_library()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": "PyTorch" if library is None else library.instruction_set,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


def commit() -> str:
    """Commit of the checkout of this file, with ``"+changes"`` for uncommitted changes; otherwise the version."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # The environment may be inside the checkout of another project.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root.resolve():
            changed = git("status", "--porcelain", "-uno", "--", ".", *(f":(exclude){path}" for path in _GENERATED))
            return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return f"version {__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], where: Mapping[str, str] | None = None) -> Path:
    """Prints the rows and writes them to a CSV file, each with `where` (None: `environment()`).

    Rows that lack a column, such as those written by an earlier version, have an empty cell there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fixed = environment() if where is None else where
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *fixed])
        writer.writeheader()
        writer.writerows({**row, **fixed} for row in rows)
    widths = {key: max(len(str(row.get(key, ""))) for row in [{key: key}, *rows]) for key in columns}
    for row in [{key: key for key in columns}, *rows]:
        print("  ".join(str(row.get(key, "")).ljust(widths[key]) for key in widths))
    print(f"\n{', '.join(f'{k} {v}' for k, v in fixed.items())}\nwritten: {os.path.relpath(path)}", file=sys.stderr)
    return path
