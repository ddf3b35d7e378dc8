"""Runs a graph on this machine: a queue of steps, one process per slot."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from nnunet_ext.crossval.claims import Claims
from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.gpus import Slot
from nnunet_ext.crossval.graph import Graph, Node
from nnunet_ext.crossval.machines import record
from nnunet_ext.crossval.process import Child

_POLL_SECONDS = 0.5
_REQUEST_SECONDS = 5.0
_STOP_SECONDS = 1.5
"""Commands that have not ended this long after an interruption are killed: every step can be resumed after a kill."""


class Status(Enum):
    FINISHED = "finished"
    WAITING = "waiting"
    RUNNING = "running"
    FAILED = "failed"
    BLOCKED = "blocked"  # a dependency failed
    STOPPED = "stopped"


_NO_DEVICE = Slot("-", {})


@dataclass
class Row:
    """A step and its status in a run."""

    node: Node
    status: Status
    slot: Slot | None = None
    child: Child | None = None


class Display(Protocol):
    """Shows the progress of the steps."""

    def show(self, rows: Sequence[Row]) -> None: ...

    def note(self, row: Row, text: str = "") -> None: ...


class Runner:
    """Runs the missing steps of a graph, or a selection of them.

    Args:
        graph: All steps.
        slots: Places for steps that compute on the device; other steps run alongside, one at a time.
        bookkeeping: Folder of records and, with `logs`, of logs.
        environment: Environment of the commands.
        display: Display that is told of every change.
        claims: Locks of the steps to run; each is released when its last step has ended.
        only: Names of the steps to run; None: all missing ones.
        logs: Whether commands write to files rather than where this process writes.
        grace: Seconds after `request_checkpoints` at which commands still running are stopped; None: never.

    Raises:
        ValueError: if one of the steps has an unfinished dependency.
    """

    def __init__(
        self,
        graph: Graph,
        slots: Sequence[Slot],
        *,
        bookkeeping: Path,
        environment: Mapping[str, str],
        display: Display,
        claims: Claims,
        only: Sequence[str] | None = None,
        logs: bool = True,
        grace: float | None = None,
    ) -> None:
        states = graph.states()
        missing = {node.name for node in graph.missing(states)} if only is None else set(only)
        self._slots, self._display, self._claims = slots, display, claims
        self._bookkeeping, self._environment, self._logs, self._grace = bookkeeping, environment, logs, grace
        self._requested: float | None = None
        self._next_request = 0.0
        self._interrupted = False
        self.rows = {
            name: Row(node, Status.WAITING if name in missing else Status.FINISHED)
            for name, node in graph.nodes.items()
            if name in missing or (only is None and states[name] is State.FINISHED)
        }
        for name in missing:
            unfinished = [need for need in graph.nodes[name].needs if need not in missing]
            unfinished = [need for need in unfinished if states[need] is not State.FINISHED]
            if only is not None and unfinished and states[name] is not State.FINISHED:
                raise ValueError(f"{name} needs {', '.join(unfinished)}, which is not finished")

    def run(self) -> bool:
        """Runs until no further step can start; returns whether all steps are finished.

        Raises:
            KeyboardInterrupt: after `interrupt`, when all commands have ended, with their workers.
        """
        try:
            self._display.show(list(self.rows.values()))
            while True:
                self._collect()
                self._start()
                self._display.show(list(self.rows.values()))
                if self._interrupted:
                    raise KeyboardInterrupt
                if not self._running():
                    break
                self._forward_request()
                time.sleep(_POLL_SECONDS)
        finally:
            self._stop()
            self._claims.release()
        return all(row.status is Status.FINISHED for row in self.rows.values())

    def interrupt(self) -> None:
        """Ends `run` and its commands. For signal handlers."""
        self._interrupted = True

    def request_checkpoints(self) -> None:
        """Starts no further step and asks trainings to end after their epoch with a checkpoint. For signal handlers."""
        self._requested = self._requested or time.monotonic()

    @property
    def requested(self) -> bool:
        return self._requested is not None

    def _running(self) -> list[Row]:
        return [row for row in self.rows.values() if row.status is Status.RUNNING]

    def _collect(self) -> None:
        for row in self._running():
            if row.child is None:
                continue
            if self._claims.lost(row.node):
                row.child.stop()
                self._fail(row, f"{row.node.name} was stopped: {row.node.lock} belongs to another run now")
                continue
            if not row.child.ended():
                continue
            failure = row.child.failure()
            if failure is None or self.requested:
                row.status = Status.FINISHED if failure is None else Status.STOPPED
                self._display.note(row)
            else:
                where = f"; the end of {row.child.log}:" if row.child.log is not None else ""
                self._fail(row, f"{failure}{where}\n{row.child.last_lines()}")
            self._release()

    def _release(self) -> None:
        """Releases the locks that no remaining step needs."""
        pending = (Status.WAITING, Status.RUNNING)
        self._claims.keep(row.node for row in self.rows.values() if row.status in pending)

    def _fail(self, row: Row, why: str) -> None:
        row.status = Status.FAILED
        self._display.note(row, why)
        self._block(row.node.name)

    def _block(self, failed: str) -> None:
        for row in self.rows.values():
            if row.status is Status.WAITING and failed in row.node.needs:
                row.status = Status.BLOCKED
                self._block(row.node.name)

    def _start(self) -> None:
        for row in self.rows.values():
            if self.requested or self._interrupted:
                return
            if row.status is not Status.WAITING or not self._is_ready(row.node):
                continue
            if row.node.state() is State.FINISHED:  # by another step meanwhile: two plans can share data
                row.status = Status.FINISHED
                continue
            slot = self._free_slot(row.node)
            if slot is not None:
                self._start_on(slot, row)

    def _start_on(self, slot: Slot, row: Row) -> None:
        log = self._bookkeeping / "logs" / f"{row.node.name}.txt" if self._logs else None
        environment = {**self._environment, **slot.environment}
        try:
            if row.node.fold is not None:
                record(self._bookkeeping / "machines" / f"{row.node.name}.jsonl", shared=len(self._slots) > 1)
            row.child = Child(row.node, environment, log)
        except OSError as error:
            self._fail(row, f"{row.node.name} could not be run: {error}")
            return
        self._claims.add_process(row.node, row.child.number)
        row.slot, row.status = slot, Status.RUNNING
        self._display.note(row)

    def _is_ready(self, node: Node) -> bool:
        return all(need not in self.rows or self.rows[need].status is Status.FINISHED for need in node.needs)

    def _free_slot(self, node: Node) -> Slot | None:
        taken = [row.slot for row in self._running()]
        slots = self._slots if node.on_gpu else [_NO_DEVICE]
        return next((slot for slot in slots if slot not in taken), None)

    def _forward_request(self) -> None:
        if self._requested is None:
            return
        now = time.monotonic()
        children = [row.child for row in self._running() if row.child is not None]
        if self._grace is not None and now > self._requested + self._grace:
            for child in children:
                child.stop()
        elif now >= self._next_request:  # repeated: a command that is just starting does not listen yet
            self._next_request = now + _REQUEST_SECONDS
            for child in children:
                child.request_checkpoint()

    def _stop(self) -> None:
        running = self._running()
        for row in running:  # all at once: each may take seconds
            if row.child is not None:
                row.child.ask_to_stop()
        until = time.monotonic() + _STOP_SECONDS
        for row in running:
            if row.child is not None:
                row.child.stop(max(0.0, until - time.monotonic()))
                row.status = Status.STOPPED
                self._display.note(row)
