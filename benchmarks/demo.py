"""The demo at its defaults, run after run: time, memory and accuracy of both trainers.

python -m benchmarks.demo [--runs 10] [--results FOLDER]

Each run is `nnunet_ext demo` in a temporary folder, without a fixed seed. Its row is added to demo_cpu.csv
as soon as it has finished, so that an interrupted series resumes; rows of other commits are kept.
Seconds are wall-clock seconds from the command to the written report, and processor seconds those of all its processes.
Memory is the highest sum over the processes at one time, pages that they share counted once (Linux's PSS).
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import RESULTS, environment, write_csv
from benchmarks.page.result_files import Results
from nnunet_ext.utils.subprocesses import console_script, start_command, stop_command

NAME = "demo_cpu"
TRAINERS = ("SASANTrainer", "StockTrainer")
_SAMPLE_SECONDS = 2.0


def measured_run(folder: Path) -> dict[str, str]:
    """Runs the demo once.

    Raises:
        RuntimeError: if it fails, with the end of its output.
    """
    log = folder / "output.txt"
    began, before, peak = time.monotonic(), _children_seconds(), 0
    with log.open("w") as output:
        command = [console_script("nnunet_ext"), "demo", "--folder", str(folder / "demo"), "--device", "cpu"]
        process = start_command(command, os.environ, output)
        try:
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                time.sleep(_SAMPLE_SECONDS)
        finally:
            stop_command(process)
    if process.returncode != 0:
        raise RuntimeError(f"the demo ended with exit code {process.returncode}:\n{log.read_text()[-3000:]}")
    seconds, processor = time.monotonic() - began, _children_seconds() - before
    means = json.loads((folder / "demo" / "report" / "summary.json").read_text())["nnunet_foreground_means"]
    dice = {f"dice_{trainer}": f"{means[trainer]:.4f}" for trainer in TRAINERS}
    return {"seconds": f"{seconds:.0f}", "processor_s": f"{processor:.0f}", "peak_GB": f"{peak / 1e9:.2f}", **dice}


def memory_of(root: int) -> int:
    """Bytes of a process and all that it started, from Linux's account of each; 0 elsewhere."""
    return sum(_proportional_bytes(process) for process in (root, *_descendants(root)))


def _descendants(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    waiting = [root]
    while waiting:
        found = children.get(waiting.pop(), [])
        waiting += found
        yield from found


def _proportional_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _children_seconds() -> float:
    """Processor seconds of all ended children of this process and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="runs of this commit, those in the file included")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSV file")
    arguments = parser.parse_args()
    file = arguments.results / f"{NAME}.csv"
    rows = Results(arguments.results).rows(NAME)
    where = environment()
    done = sum(row["commit"] == where["commit"] for row in rows)
    for number in range(done + 1, arguments.runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            row = {"run": str(number), **measured_run(Path(folder))}
        rows.append({**row, **where})
        write_csv(file, rows, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
