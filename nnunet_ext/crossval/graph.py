"""A cross-validation as a graph of commands."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.crossval.completion import State

PREPARE = "prepare"  # the group of the steps before the trainings


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Node:
    """A step: one command of nnU-Net or of this package.

    Attributes:
        name: Letters, digits, underscores and dots; unique in a dataset and configuration.
        needs: Names of steps that must finish first.
        state: Reads its state from the disk.
        command: The exact command for that state.
        group: Name of a group, whose steps form one cluster job or one array of jobs.
        on_gpu: Whether it computes on the device.
        follows: Whether it reruns when a dependency reran; a training does not, if its data exist.
        before: Called before the command is started.
        after: Called after the command succeeded.
        fold: Number of the fold of a training.
        fold_folder: nnU-Net's folder of a training.
        lock: File that excludes other runs while the step runs; steps may share one.
        progress: Reads a value that changes whenever an interrupted step would resume from a later point.
    """

    name: str
    needs: tuple[str, ...]
    state: Callable[[], State]
    command: Callable[[], list[str]]
    group: str
    on_gpu: bool = False
    follows: bool = False
    before: Callable[[], None] = _nothing
    after: Callable[[], None] = _nothing
    fold: int | None = None
    fold_folder: Path | None = None
    lock: Path | None = None
    progress: Callable[[], Any] = _nothing


class Graph:
    """Steps in an order in which they can run; the first folds precede the second ones."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.name: node for node in nodes}

    def states(self) -> dict[str, State]:
        return {name: node.state() for name, node in self.nodes.items()}

    def missing(self, states: Mapping[str, State]) -> list[Node]:
        """Steps that must run: unfinished or outdated, and either an end of the graph or needed by a step to run.

        Preprocessed data that were removed after all trainings do not count as missing.
        """
        undone: set[str] = set()
        for name, node in self.nodes.items():
            if states[name] is not State.FINISHED or (node.follows and undone.intersection(node.needs)):
                undone.add(name)
        needed = {need for node in self.nodes.values() for need in node.needs}
        wanted = {name for name in self.nodes if name not in needed}
        for name in reversed(self.nodes):
            if name in wanted and name in undone:
                wanted.update(self.nodes[name].needs)
        return [node for name, node in self.nodes.items() if name in wanted and name in undone]

    def select(self, name: str) -> list[Node]:
        """The step with a name, or the steps of a group.

        Raises:
            ValueError: for an unknown name.
        """
        if name in self.nodes:
            return [self.nodes[name]]
        chosen = [node for node in self.nodes.values() if node.group == name]
        if not chosen:
            raise ValueError(f"--only {name}: no such step; known: {PREPARE}, {', '.join(self.nodes)}")
        return chosen


def progress_of(nodes: Iterable[Node]) -> list[Any]:
    """Progress of several steps, to be compared with a later value."""
    return [(node.state(), node.progress()) for node in nodes]
