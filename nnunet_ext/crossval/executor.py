"""The interface of what carries out a cross-validation: this machine, or Slurm."""

from typing import Any, Protocol

from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.graph import Graph


class Executor(Protocol):
    """Carries out what is missing of a graph."""

    def run(self, experiment: Experiment, graph: Graph) -> int:
        """Runs or submits what is missing and returns the exit code.

        Raises:
            ValueError: if another run is at work on it.
        """
        ...

    def describe(self, experiment: Experiment, graph: Graph) -> dict[str, Any]:
        """Content of a dry run: the steps, and what this executor would make of them."""
        ...
