"""A cross-validation on this machine, and its dry run."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.display import make_display
from nnunet_ext.crossval.experiment import Experiment, child_environment
from nnunet_ext.crossval.graph import Graph
from nnunet_ext.crossval.process import CHECKPOINT_SIGNAL
from nnunet_ext.crossval.runner import Runner, Slot, Status
from nnunet_ext.utils.subprocesses import RESUMABLE_EXIT


def describe(experiment: Experiment, graph: Graph) -> str:
    """The graph: each part's state, what it waits for, and the exact command of what is to do."""
    states = graph.states()
    todo = graph.missing(states)
    lines = [f"{experiment.dataset}, {experiment.configuration}: {len(todo)} of {len(graph.nodes)} parts to do"]
    for name, node in graph.nodes.items():
        needs = [need for need in node.needs if graph.nodes[need] in todo]
        after = f"  after {', '.join(needs)}" if node in todo and needs else ""
        known = "outdated" if node in todo and states[name] is State.FINISHED else states[name].value
        spare = "  (not needed)" if node not in todo and states[name] is not State.FINISHED else ""
        lines.append(f"\n{known:<12}{name}{after}{spare}")
        if node in todo:
            lines.append(f"            {shlex.join(node.command())}")
    return "\n".join(lines)


def make_slots(
    device: str, gpus: Sequence[str] | None, num_gpus: int = 1, environment: Mapping[str, str] = os.environ
) -> list[Slot]:
    """One slot for each GPU, or for each `num_gpus` of them; one on cpu and mps.

    Args:
        device: cuda, cpu or mps.
        gpus: Their numbers or names; None: all of CUDA_VISIBLE_DEVICES, without which the first `num_gpus`.
        num_gpus: That train one fold together.
        environment: With CUDA_VISIBLE_DEVICES.

    Raises:
        ValueError: if the GPUs cannot be divided so.
    """
    if device != "cuda":
        if gpus is not None:
            raise ValueError(f"--gpus {' '.join(gpus)}: the device is {device}")
        return [Slot(device, {})]
    visible = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    gpus = gpus or visible or [str(number) for number in range(num_gpus)]
    if len(set(gpus)) < len(gpus) or len(gpus) % num_gpus:
        raise ValueError(f"--gpus {' '.join(gpus)} must be different GPUs, a multiple of --num-gpus {num_gpus}")
    groups = [",".join(gpus[start : start + num_gpus]) for start in range(0, len(gpus), num_gpus)]
    return [Slot(f"GPU {group}", {"CUDA_VISIBLE_DEVICES": group}) for group in groups]


def run_local(experiment: Experiment, graph: Graph, slots: Sequence[Slot]) -> int:
    """Runs what is missing.

    Returns:
        Exit code: 0 if all is finished, 1 if something failed, 75 if it was asked to end with checkpoints.
    """
    with make_display() as display:
        runner = Runner(graph, slots, experiment.bookkeeping, child_environment(), display)
        waiting = sum(row.status is Status.WAITING for row in runner.rows.values())
        print(f"{waiting} of {len(graph.nodes)} parts to do; logs in {experiment.bookkeeping / 'logs'}", flush=True)
        with listening(runner):
            finished = runner.run()
    if finished:
        pooled = experiment.pooled_folder(experiment.models[0])
        product = experiment.report / "report.html" if "compare" in graph.nodes else pooled
        print(f"All parts are finished: {product}")
        return 0
    return _conclude(runner)


def _conclude(runner: Runner) -> int:
    for status in (Status.FAILED, Status.BLOCKED, Status.STOPPED, Status.WAITING):
        names = [name for name, row in runner.rows.items() if row.status is status]
        if names:
            print(f"{status.value}: {', '.join(names)}", file=sys.stderr)
    print("Run the same command again to go on from here.", file=sys.stderr)
    failed = any(row.status is Status.FAILED for row in runner.rows.values())
    return RESUMABLE_EXIT if runner.requested and not failed else 1


@contextmanager
def listening(runner: Runner) -> Iterator[None]:
    """Ends the runner's commands when this process is told to end; on SIGUSR1 with checkpoints.

    Once told, it hears no further signal: what it ends is ended by force if it takes too long.
    """
    ends = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]

    def interrupt(*_: Any) -> None:
        for number in ends:
            signal.signal(number, signal.SIG_IGN)
        runner.interrupt()

    handlers: dict[int, Callable[..., None]] = dict.fromkeys(ends, interrupt)
    if CHECKPOINT_SIGNAL is not None:
        handlers[CHECKPOINT_SIGNAL] = lambda *_: runner.request_checkpoints()
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
