"""One step, or one group of steps, in the foreground: the work of a cluster job."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.crossval.claims import claim
from nnunet_ext.crossval.cluster.jobs import DEFAULT_CPUS
from nnunet_ext.crossval.display import LineDisplay
from nnunet_ext.crossval.experiment import Experiment, child_environment
from nnunet_ext.crossval.gpus import Slot
from nnunet_ext.crossval.graph import Graph, progress_of
from nnunet_ext.crossval.local import listening
from nnunet_ext.crossval.process import CHECKPOINT_SIGNAL
from nnunet_ext.crossval.runner import Runner
from nnunet_ext.crossval.steps import build_graph
from nnunet_ext.utils.locks import job_number
from nnunet_ext.utils.signals import handling
from nnunet_ext.utils.subprocesses import RESUMABLE_EXIT

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

_LAST_SECONDS = 60  # of the warning time, kept for ending trainings that did not react


class Outcome(Enum):
    FINISHED = 0
    FAILED = 1
    RESUMABLE = RESUMABLE_EXIT


def run_steps(
    graph: Graph,
    bookkeeping: Path,
    name: str,
    warning_seconds: int,
    *,
    wait: bool = False,
    listen: Callable[[Runner], AbstractContextManager[None]] = listening,
) -> Outcome:
    """Runs a step, or a group of steps, until it ends or is asked to end because of a time limit.

    Args:
        graph: All steps.
        bookkeeping: Folder of records.
        name: Name of a step or of a group.
        warning_seconds: Seconds from the request to end until the time limit.
        wait: Whether to wait for another run that is working on the same steps.
        listen: Handles signals while the steps run.

    Raises:
        ValueError: for an unknown step, one with unfinished dependencies, and one that another run is working on.
    """
    nodes = graph.select(name)
    claims = claim(graph, nodes, wait)
    try:
        runner = Runner(
            graph,
            [Slot("this job's device", {})],
            bookkeeping=bookkeeping,
            environment=child_environment(),
            display=LineDisplay(),
            claims=claims,
            only=[node.name for node in nodes],
            logs=False,
            grace=max(warning_seconds - _LAST_SECONDS, warning_seconds // 2),
        )
        with listen(runner):
            finished = runner.run()
    finally:
        claims.release()
    if finished:
        return Outcome.FINISHED
    return Outcome.RESUMABLE if runner.requested else Outcome.FAILED


@dataclass(frozen=True)
class Task:
    """A step of an experiment as a job of Slurm, run by submitit.

    The job calls this object, and submitit requeues it through `checkpoint`. submitit ignores SIGTERM, which Slurm
    sends to a preempted job, and requeues as often as it is told to; so this class listens to SIGTERM and gives up a
    job that makes no progress.

    Attributes:
        experiment: The cross-validation to which the step belongs.
        name: Name of a step or of a group.
        warning_seconds: Seconds before the time limit at which Slurm sends SIGUSR1.
        wait: Whether to wait for another run that is working on the same step.
        last: Progress of the step when this job was last requeued after a preemption.
    """

    experiment: Experiment
    name: str
    warning_seconds: int
    wait: bool = False
    last: Any = None

    def __call__(self) -> None:
        """Runs the step.

        Raises:
            SystemExit: when the job was requeued.
            RuntimeError: if the step failed, or made no progress since it was last requeued.
        """
        os.environ.setdefault("nnUNet_n_proc_DA", os.environ.get("SLURM_CPUS_PER_TASK", str(DEFAULT_CPUS)))
        graph = build_graph(self.experiment)
        nodes = graph.select(self.name)
        before = progress_of(nodes)
        requests: list[int] = []
        outcome = run_steps(
            graph,
            self.experiment.bookkeeping,
            self.name,
            self.warning_seconds,
            wait=self.wait,
            listen=lambda runner: _listening_in_job(runner, requests),
        )
        if outcome is Outcome.FINISHED:
            return
        if outcome is Outcome.FAILED:
            raise RuntimeError(f"{self.name} failed; see above")
        preempted = requests[0] == signal.SIGTERM
        if preempted and not is_running_job():
            raise RuntimeError(f"{self.name} was cancelled")
        if progress_of(nodes) == (self.last if preempted else before):
            raise RuntimeError(
                f"{self.name} wrote no new checkpoint between two requeues: give the job more time (nnU-Net's own "
                "trainers write a checkpoint every 50 epochs, ours also when they are asked)"
            )
        assert CHECKPOINT_SIGNAL is not None
        requeue = signal.getsignal(CHECKPOINT_SIGNAL)  # submitit's handler
        assert callable(requeue)
        requeue(CHECKPOINT_SIGNAL, None)

    def checkpoint(self) -> "DelayedSubmission":
        """The submission with which submitit requeues this job."""
        from submitit.helpers import DelayedSubmission

        nodes = build_graph(self.experiment).select(self.name)
        return DelayedSubmission(dataclasses.replace(self, last=progress_of(nodes)))


def _listening_in_job(runner: Runner, requests: list[int]) -> AbstractContextManager[None]:
    """Asks for a checkpoint before the time limit and on preemption; `requests` collects the signals in order."""

    def request(number: int, _: Any) -> None:
        requests.append(number)
        runner.request_checkpoints()

    assert CHECKPOINT_SIGNAL is not None
    return handling({CHECKPOINT_SIGNAL: request, signal.SIGTERM: request})


def is_running_job() -> bool:
    """Whether Slurm still counts this process's job as running: scancel sends SIGTERM, as a preemption does."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={job_number()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"squeue does not answer, so this job is not requeued: {done.stderr.strip()}", file=sys.stderr)
    return done.stdout.strip() == "RUNNING"
