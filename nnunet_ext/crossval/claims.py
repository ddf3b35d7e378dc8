"""Locks that keep other runs from training, preparing or writing what this run is about to."""

import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.graph import PREPARE, Graph, Node
from nnunet_ext.utils.locks import Lock, LockHeld, acquire, held, is_held, release

_WAIT_SECONDS = 5.0


class Claims:
    """Locks of steps that are to run."""

    def __init__(self, locks: dict[Path, Lock]) -> None:
        self._locks = locks

    def lost(self, node: Node) -> bool:
        """Whether another run took the lock over because this one looked dead, for instance after its machine slept."""
        return node.lock in self._locks and self._locks[node.lock].lost

    def covers(self, nodes: Iterable[Node]) -> bool:
        return all(node.lock is None or node.lock in self._locks for node in nodes)

    def add_process(self, node: Node, number: int) -> None:
        if node.lock in self._locks:
            self._locks[node.lock].add_process(number)

    def keep(self, nodes: Iterable[Node]) -> None:
        """Releases the locks of all other steps."""
        needed = {node.lock for node in nodes}
        for path in [path for path in self._locks if path not in needed]:
            self._locks.pop(path).release()

    def release(self) -> None:
        release(self._locks.values())
        self._locks = {}


def claim(graph: Graph, only: Sequence[Node] | None = None, wait: bool = False) -> Claims:
    """Locks all missing steps of a graph, or of a selection, at once.

    Args:
        graph: All steps.
        only: Steps to run; None: all missing ones.
        wait: Whether to wait for other runs; steps that they finish in the meantime are no longer missing.

    Raises:
        LockHeld: if another run holds one of the locks; the message names the run and the remedy.
    """
    told = ""
    while True:
        try:
            claims = Claims(acquire(_locks(_missing(graph, only))))
        except LockHeld as error:
            if not wait:
                raise LockHeld(f"{error}: end it, or wait for it with --wait (--status shows its progress)") from error
            if str(error) != told:
                told = str(error)
                print(f"{told}; waiting", file=sys.stderr, flush=True)
            time.sleep(_WAIT_SECONDS)
            continue
        if claims.covers(_missing(graph, only)):  # another run may have ended just before
            return claims
        claims.release()


def check_unclaimed(nodes: Iterable[Node]) -> None:
    """Raises LockHeld if another run is working on one of several steps."""
    for path, what in _locks(nodes).items():
        if is_held(path):
            raise LockHeld(f"{held(path, what)}: end it, or wait for it and run this again")


def _missing(graph: Graph, only: Sequence[Node] | None) -> list[Node]:
    if only is None:
        return graph.missing(graph.states())
    return [node for node in only if node.state() is not State.FINISHED or node.follows]


def _locks(nodes: Iterable[Node]) -> dict[Path, str]:
    return {
        node.lock: "the preparation of this dataset" if node.group == PREPARE else node.name
        for node in nodes
        if node.lock is not None
    }
