"""The interface of a cross-validation's executors: this machine, or Slurm."""

from typing import Any, Protocol

from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.graph import Graph


class Executor(Protocol):
    """Carries out the missing steps of a graph."""

    def run(self, experiment: Experiment, graph: Graph) -> int:
        """Runs or submits the missing steps and returns the exit code.

        Raises:
            ValueError: if another run is working on them.
        """
        ...

    def describe(self, experiment: Experiment, graph: Graph) -> dict[str, Any]:
        """Content of a dry run: the steps, and how this executor would run them."""
        ...
