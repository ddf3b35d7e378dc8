"""One part of a cross-validation in the foreground: what a cluster's job runs."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_ext.crossval.completion import resume_point
from nnunet_ext.crossval.display import LineDisplay
from nnunet_ext.crossval.experiment import child_environment
from nnunet_ext.crossval.graph import Graph, Node
from nnunet_ext.crossval.local import listening
from nnunet_ext.crossval.runner import Runner, Slot
from nnunet_ext.utils.subprocesses import RESUMABLE_EXIT

_LAST_SECONDS = 60  # of the warning time, in which a training that did not listen is ended


def run_part(graph: Graph, bookkeeping: Path, name: str, warning_seconds: int) -> int:
    """Runs a part, or a group of parts, and puts its job back into the queue if the time limit comes first.

    Args:
        graph: The whole.
        bookkeeping: Folder of pid files.
        name: Of a node or of a group.
        warning_seconds: How long before the time limit SIGUSR1 comes.

    Returns:
        Exit code: 0 if finished, 75 if the job is to be run again, 1 if it failed.

    Raises:
        ValueError: for an unknown part, and for one that needs what is not finished.
    """
    nodes = graph.select(name)
    before = _resume_points(nodes)
    grace = max(warning_seconds - _LAST_SECONDS, warning_seconds // 2)
    runner = Runner(
        graph,
        [Slot("this job's device", {})],
        bookkeeping,
        child_environment(),
        LineDisplay(),
        only=[node.name for node in nodes],
        logs=False,
        grace=grace,
    )
    with listening(runner):
        finished = runner.run()
    if finished:
        return 0
    if not runner.requested:
        return 1
    if _resume_points(nodes) == before:
        print(
            f"{name} did not get from one checkpoint to the next within the time limit: give the job more time "
            "(nnU-Net's own trainers write one every 50 epochs, ours also when the time limit comes near)",
            file=sys.stderr,
        )
        return 1
    return RESUMABLE_EXIT if requeue() else 1


def _resume_points(nodes: Sequence[Node]) -> list[tuple[str, int] | None]:
    """Which checkpoint each training would go on from, and when it was written."""
    points = [resume_point(node.fold_folder) for node in nodes if node.fold_folder is not None]
    return [None if point is None else (point.name, point.stat().st_mtime_ns) for point in points]


def requeue(environment: Mapping[str, str] = os.environ) -> bool:
    """Puts this job back into Slurm's queue under its number, so that what depends on it goes on waiting.

    LSF does so by itself, because of the exit code.
    """
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return True
    done = subprocess.run(["scontrol", "requeue", job], check=False)
    if done.returncode != 0:
        print("Slurm does not let this job be requeued: run the same command again when it has ended", file=sys.stderr)
    return done.returncode == 0
