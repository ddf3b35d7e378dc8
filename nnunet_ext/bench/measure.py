"""Times side by side in one process, peak memory, and CSV files that say where they were measured."""

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

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Seconds that pass, and seconds that this process computes: of one thread the same, but for what others on the machine
take meanwhile."""


def interleaved_seconds(
    functions: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1, clock: str = "wall"
) -> dict[str, list[float]]:
    """Seconds by one of `CLOCKS` of each function, run in turn `repeats` times: a busy machine hits all of them alike.

    Raises:
        ValueError: for the processor's clock with several threads, whose seconds it would add up.
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
    """Median over the turns of slow / fast."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def time_columns(
    seconds: Sequence[float], median: str = "seconds", unit: str = "s", digits: int = 4
) -> dict[str, object]:
    """A row's columns of what `interleaved_seconds` measured: `spread_columns` and the number of turns."""
    return {**spread_columns(seconds, median, unit, digits), "repeats": len(seconds)}


def spread_columns(
    seconds: Sequence[float], median: str = "seconds", unit: str = "s", digits: int = 4, prefix: str = ""
) -> dict[str, str]:
    """Median, lowest and highest, for a row of several times.

    Args:
        seconds: Of the turns that count.
        median: The name of the median's column.
        unit: "s" or "ms", that of the columns.
        digits: Behind the point.
        prefix: Of the columns' names.
    """
    shown = {"s": 1.0, "ms": 1e3}[unit]
    values = {median: statistics.median(seconds), f"min_{unit}": min(seconds), f"max_{unit}": max(seconds)}
    return {f"{prefix}{name}": f"{shown * value:.{digits}f}" for name, value in values.items()}


def peak_gigabytes(prepare: Callable[[], Callable[[], object]]) -> tuple[float, float]:
    """Peak resident memory of a call in a fresh process: what it adds to what was held before, and the whole.

    Args:
        prepare: A function of a module, without arguments; what it returns is measured.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (prepare, torch.get_num_threads()))


def _peak(prepare: Callable[[], Callable[[], object]], threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    return _peak_of(prepare())


def added_gigabytes(call: Callable[[], object], device: str = "cpu") -> float | None:
    """Peak memory that a call adds to what is held before it, in this process; None where nothing counts it.

    On the CPU the resident memory, which Linux counts; of a call that has run before, so that what stays is held. Of a
    training step gradients are in it; weights and the optimiser's state are held before.
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
    # What preparing freed goes back to the system, or the call would have its memory for nothing; and the peak so far,
    # that of the process which started this one included, is forgotten.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_bytes("VmRSS")
    call()
    peak = _resident_bytes("VmHWM")
    return (peak - before) / 1e9, peak / 1e9


def _resident_bytes(kind: str) -> int:
    """Resident memory now ("VmRSS") or at its peak ("VmHWM"), as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{kind}:")).split()[1])


_MADE = ("benchmarks/results", "docs", "README.md")
"""What measurements change, so that those after them still run the committed code."""


def environment(device: str = "cpu") -> dict[str, str]:
    """What every row of a result carries beside its numbers."""
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
    """Of the checkout that this file is in, with ``"+changes"`` if not all is committed; else the package's version."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An environment may stand within the checkout of another project.
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root.resolve():
            changed = git("status", "--porcelain", "-uno", "--", ".", *(f":(exclude){path}" for path in _MADE))
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

    A column that some rows lack (those that an earlier version wrote) is empty in them.
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
