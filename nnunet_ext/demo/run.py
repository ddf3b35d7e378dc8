"""The demo: a cross-validation's first fold on the shipped scans, at a resolution that suits two CPU cores."""

import os
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

from nnunet_ext.crossval.experiment import make_experiment
from nnunet_ext.crossval.gpus import Slot, make_slots
from nnunet_ext.crossval.graph import Graph
from nnunet_ext.crossval.local import LocalExecutor
from nnunet_ext.crossval.steps import build_graph
from nnunet_ext.demo.summary import summary_text
from nnunet_ext.demo.workspace import DATASET, Settings, Workspace, check_trainers
from nnunet_ext.utils.devices import choose_device

_CONFIGURATION = "3d_fullres"
_FOLD = 0
_SPACING = ("2", "2", "2")
_STOCK = "StockTrainer"


def run(
    folder: str | Path, trainers: Sequence[str], iterations: int, device: str = "auto", *, open_report: bool = False
) -> int:
    """Copies the shipped scans, runs `nnunet_ext crossval` on one fold of them and prints the result.

    Args:
        folder: Working folder, new or from an earlier run with the same settings.
        trainers: Names of our trainers.
        iterations: Training iterations per trainer.
        device: cpu, cuda, mps, or auto for the best available device.
        open_report: Whether to open the report in the web browser.

    Returns:
        Exit code: that of the cross-validation.

    Raises:
        ValueError: for unknown trainers, fewer than 1 iteration, or a folder that does not belong to the demo.
    """
    if iterations < 1:
        raise ValueError(f"--iterations {iterations} must be at least 1")
    check_trainers(trainers)
    space = Workspace(folder, Settings(iterations, choose_device(device)))
    budget = space.settings.budget
    print(
        f"Demo in {space.root} on {space.settings.device}: {', '.join(trainers)}, "
        f"{budget.epochs} epochs of {budget.iterations} iterations each",
        flush=True,
    )
    space.lay_out_raw()
    with mock.patch.dict(os.environ, space.environment()):  # nnU-Net reads it here, and its commands inherit it
        experiment = make_experiment(
            DATASET,
            _CONFIGURATION,
            trainers,
            folds=[_FOLD],
            report=space.report,
            device=space.settings.device,
            processes=2,
            baseline=_STOCK if _STOCK in trainers else None,
        )
        graph = _at_low_resolution(build_graph(experiment))
        code = LocalExecutor(training_slots(space.settings.device)).run(experiment, graph)
    if code != 0:
        return code
    page = space.report / "report.html"
    print(f"\n{summary_text(space.report / 'summary.json')}\n\nReport: {page}")
    if open_report and not webbrowser.open(page.as_uri()):
        print("No web browser could be started; open this file in one.")
    return 0


def training_slots(device: str) -> list[Slot]:
    """The place that trains, one trainer after the other: two at once are little faster and need 1.2 GB more.

    On the CPU a training has a thread per core, as nnUNetv2_train sets it. Data are augmented in its own process, as
    another would need memory and compete for the cores. OpenMP's threads do not spin while they wait.
    """
    if device != "cpu":
        return make_slots(device, None)
    return [Slot("CPU", {"OMP_WAIT_POLICY": "PASSIVE", "nnUNet_n_proc_DA": "0"})]


def _at_low_resolution(graph: Graph) -> Graph:
    """Plans for voxels of 2 mm instead of 1 mm: an eighth of the voxels."""
    name = "plan_nnUNetPlans"
    plan = graph.nodes[name]
    command = [*plan.command(), "-overwrite_target_spacing", *_SPACING]
    return Graph({**graph.nodes, name: replace(plan, command=lambda: command)}.values())
