"""Describes the steps of a cross-validation, for people and for scripts: states, commands and running processes."""

import shlex
from typing import Any

from nnunet_ext.crossval.completion import State
from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.graph import Graph, Node
from nnunet_ext.nnunet.trained_model import split_model_name
from nnunet_ext.nnunet.training_log import duration, read_progress
from nnunet_ext.utils.locks import is_held, read_holder

SCHEMA = 1


def dry_run(experiment: Experiment, graph: Graph) -> dict[str, Any]:
    """Each step's state and dependencies, and the exact command of each step to run."""
    states = graph.states()
    todo = {node.name for node in graph.missing(states)}
    steps = []
    for name, node in graph.nodes.items():
        to_do = name in todo
        outdated = to_do and states[name] is State.FINISHED
        steps.append(
            {
                "name": name,
                "state": "outdated" if outdated else states[name].value,
                "to_do": to_do,
                "after": [need for need in node.needs if to_do and need in todo],
                "command": node.command() if to_do else None,
            }
        )
    return _head(experiment) | {"to_do": len(todo), "steps": steps}


def status(experiment: Experiment, graph: Graph) -> dict[str, Any]:
    """Each step's state and, while it runs, the run that works on it and the progress of a training."""
    states = graph.states()
    todo = {node.name for node in graph.missing(states)}
    steps = []
    for name, node in graph.nodes.items():
        # Steps that share a lock run one after the other: the first missing one is running.
        first = next((other for other in graph.nodes.values() if other.lock == node.lock and other.name in todo), node)
        running = name in todo and node is first and node.lock is not None and is_held(node.lock)
        outdated = name in todo and states[name] is State.FINISHED
        value = "running" if running else "outdated" if outdated else states[name].value
        holder = read_holder(node.lock) if running and node.lock is not None else None
        steps.append(
            {"name": name, "state": value, "needed": name in todo, "held_by": str(holder) if holder else None}
            | _training(node)
        )
    count = sum(step["state"] == "running" for step in steps)
    return _head(experiment) | {"to_do": len(todo), "running": count, "steps": steps}


def dry_run_text(content: dict[str, Any]) -> str:
    """The lines that `--dry-run` prints."""
    lines = [
        f"{content['dataset']}, {content['configuration']}: {content['to_do']} of {len(content['steps'])} steps to do"
    ]
    for step in content["steps"]:
        after = f"  after {', '.join(step['after'])}" if step["after"] else ""
        spare = "  (not needed)" if not step["to_do"] and step["state"] != State.FINISHED.value else ""
        lines.append(f"\n{step['state']:<12}{step['name']}{after}{spare}")
        if step["command"] is not None:
            lines.append(f"            {shlex.join(step['command'])}")
    return "\n".join(lines)


def status_text(content: dict[str, Any]) -> str:
    """The lines that `--status` prints."""
    total = len(content["steps"])
    done = f"{total - content['to_do']} of {total} steps done, {content['running']} running"
    lines = [f"{content['dataset']}, {content['configuration']}: {done}"]
    for step in content["steps"]:
        parts = [f"{step['state']:<12}{step['name']}"]
        if step.get("epoch") is not None:
            parts.append(f"epoch {step['epoch']}/{step['epochs']}")
        if step.get("dice") is not None:
            parts.append(f"Dice {step['dice']:.3f}")
        if step["state"] == "running" and step.get("seconds_left") is not None:
            parts.append(f"{duration(step['seconds_left'])} left")
        if step["held_by"]:
            parts.append(step["held_by"])
        lines.append("  ".join(parts))
    return "\n".join(lines)


def _training(node: Node) -> dict[str, Any]:
    if node.fold_folder is None or not node.fold_folder.is_dir():
        return {}
    progress = read_progress(node.fold_folder, split_model_name(node.fold_folder.parent.name)[0])
    return {
        "fold": node.fold,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "dice": progress.dice,
        "seconds_left": progress.seconds_left,
        "validated": progress.validated,
    }


def _head(experiment: Experiment) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "dataset": experiment.dataset,
        "configuration": experiment.configuration,
        "report": str(experiment.report / "report.html") if len(experiment.models) > 1 else None,
        "logs": str(experiment.bookkeeping),
    }
