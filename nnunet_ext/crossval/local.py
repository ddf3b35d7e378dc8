"""A cross-validation on this machine."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from nnunet_ext.crossval.claims import claim
from nnunet_ext.crossval.description import dry_run
from nnunet_ext.crossval.display import make_display
from nnunet_ext.crossval.experiment import Experiment, child_environment
from nnunet_ext.crossval.gpus import Slot
from nnunet_ext.crossval.graph import Graph
from nnunet_ext.crossval.process import CHECKPOINT_SIGNAL
from nnunet_ext.crossval.runner import Runner, Status
from nnunet_ext.utils.signals import handling
from nnunet_ext.utils.subprocesses import RESUMABLE_EXIT


@dataclass(frozen=True)
class LocalExecutor:
    """Runs steps on this machine.

    Attributes:
        slots: Places that run one training at a time.
        wait: Whether to wait for other runs that are working on the same steps.
    """

    slots: Sequence[Slot]
    wait: bool = False

    def describe(self, experiment: Experiment, graph: Graph) -> dict[str, Any]:
        return dry_run(experiment, graph)

    def run(self, experiment: Experiment, graph: Graph) -> int:
        """Runs the missing steps, and names the result.

        Returns:
            Exit code: 0 if all is finished, 1 if something failed, 75 if it was asked to end with checkpoints.
        """
        code = self.run_steps(experiment, graph)
        if code == 0:
            pooled = experiment.pooled_folder(experiment.models[0])
            product = experiment.report / "report.html" if "compare" in graph.nodes else pooled
            print(f"All steps are finished: {product}")
        return code

    def run_steps(self, experiment: Experiment, graph: Graph) -> int:
        """Runs the missing steps of any graph and returns the exit code of `run`."""
        claims = claim(graph, wait=self.wait)
        try:
            with make_display() as display:
                runner = Runner(
                    graph,
                    self.slots,
                    bookkeeping=experiment.bookkeeping,
                    environment=child_environment(),
                    display=display,
                    claims=claims,
                )
                waiting = sum(row.status is Status.WAITING for row in runner.rows.values())
                logs = experiment.bookkeeping / "logs"
                print(f"{waiting} of {len(graph.nodes)} steps to do; logs in {logs}", flush=True)
                with listening(runner):
                    finished = runner.run()
        except KeyboardInterrupt:
            print("\nInterrupted. Run the same command to resume.", file=sys.stderr, flush=True)
            raise
        finally:
            claims.release()
        return 0 if finished else _conclude(runner)


def _conclude(runner: Runner) -> int:
    for status in (Status.FAILED, Status.BLOCKED, Status.STOPPED, Status.WAITING):
        names = [name for name, row in runner.rows.items() if row.status is status]
        if names:
            print(f"{status.value}: {', '.join(names)}", file=sys.stderr)
    print("Run the same command again to resume.", file=sys.stderr)
    failed = any(row.status is Status.FAILED for row in runner.rows.values())
    return RESUMABLE_EXIT if runner.requested and not failed else 1


def listening(runner: Runner) -> AbstractContextManager[None]:
    """Ends the runner's commands when a signal asks this process to end; on SIGUSR1 with checkpoints.

    Signals after the first are ignored: commands that take too long to end are ended by force. Signals that were
    ignored when this process started stay ignored, as `nohup` requires.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    ends = [number for name in names if (number := getattr(signal, name, None)) is not None]

    def interrupt(*_: Any) -> None:
        for number in ends:
            signal.signal(number, signal.SIG_IGN)
        runner.interrupt()

    handlers: dict[int, Callable[..., Any]] = dict.fromkeys(ends, interrupt)
    if CHECKPOINT_SIGNAL is not None:
        handlers[CHECKPOINT_SIGNAL] = lambda *_: runner.request_checkpoints()
    return handling(handlers)
