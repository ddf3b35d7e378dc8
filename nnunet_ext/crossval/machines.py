"""Records on which machine each training ran: seconds on shared or different machines do not measure cost."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ext.crossval.experiment import Experiment


def record(file: Path, shared: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Adds to a training's record the machine on which it is about to run, and whether it has it to itself.

    Args:
        file: The record.
        shared: Whether other trainings of this run use the machine at the same time.
        environment: Holds the variables of a Slurm job, which shares its node unless it has all of its CPUs.
    """
    given = environment.get("SLURM_CPUS_ON_NODE", "")
    partial_node = "SLURM_JOB_ID" in environment and given.isdigit() and int(given) < (os.cpu_count() or 1)
    line = {"machine": socket.gethostname(), "device": _device(), "shared": shared or partial_node}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as output:
        print(json.dumps(line), file=output)


def record_file(experiment: Experiment, step: str) -> Path:
    return experiment.bookkeeping / "machines" / f"{step}.jsonl"


def differ(experiment: Experiment, steps: Sequence[str]) -> bool:
    """Whether trainings shared their machines or ran on different ones; those without a record are not counted."""
    seen = set()
    for step in steps:
        with contextlib.suppress(FileNotFoundError):
            for line in record_file(experiment, step).read_text().splitlines():
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if entry["shared"]:
                        return True
                    seen.add((entry["machine"], entry["device"]))
    return len(seen) > 1


def _device() -> str:
    """Names of the GPUs of this machine; empty without a driver."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        names = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
        return ", ".join(sorted({name.strip() for name in names if name.strip()}))
    return ""
