"""The cost of a plan as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.profiling.counts import trainer_network_size
from nnunet_ext.profiling.memory import TrainingMemory, trace_step
from nnunet_ext.profiling.trainer_step import trainer_step

_GIGABYTE = 1e9


@dataclass(frozen=True)
class PlanCost:
    """The cost of training one configuration of a plan.

    Attributes:
        name: Name of the configuration.
        patch_size: Patch size in voxels.
        batch_size: Samples in a batch.
        strides: Strides into every stage, per axis.
        memory: Traced memory of the training step.
        multiply_adds: Multiply-adds of one forward pass of one patch; see
            `nnunet_ext.profiling.counts.multiply_adds`.
        parameters: Number of parameters.
    """

    name: str
    patch_size: tuple[int, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    memory: TrainingMemory
    multiply_adds: int
    parameters: int


def plan_costs(trainer: Any, plans: dict[str, Any], dataset_json: dict) -> list[PlanCost]:
    """Traces every configuration of a plan as a trainer would train it."""
    return [_cost(trainer, plans, name, dataset_json) for name in plans["configurations"]]


def _cost(trainer: Any, plans: dict[str, Any], name: str, dataset_json: dict) -> PlanCost:
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    return PlanCost(
        name=name,
        batch_size=configuration.batch_size,
        strides=tuple(tuple(stride) for stride in configuration.pool_op_kernel_sizes),
        memory=trace_step(trainer_step(trainer, plans, name, dataset_json, configuration.batch_size)),
        **trainer_network_size(trainer, manager, name, dataset_json),
    )


def cost_table(costs: Sequence[PlanCost]) -> str:
    """Formats costs as text with one column per configuration."""
    rows = [("", [cost.name for cost in costs])]
    rows += [(title, [tell(cost) for cost in costs]) for title, tell in _ROWS.items()]
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(costs))]
    head = max(len(title) for title, _ in rows)
    return "\n".join(
        f"{title:<{head}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for title, cells in rows
    )


def times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _strides(cost: PlanCost) -> str:
    """Strides of every stage after the first, as one number where the axes agree."""
    return " ".join(str(s[0]) if len(set(s)) == 1 else "x".join(map(str, s)) for s in cost.strides[1:])


def _gigabytes(part: str) -> Any:
    return lambda cost: f"{getattr(cost.memory, part) / _GIGABYTE:.2f}"


_ROWS = {
    "patch": lambda cost: times(cost.patch_size),
    "batch": lambda cost: str(cost.batch_size),
    "strides": _strides,
    "memory, GB": _gigabytes("total"),
    "  parameters": _gigabytes("parameters"),
    "  gradients": _gigabytes("gradients"),
    "  optimiser state": _gigabytes("optimiser_state"),
    "  saved for backward": _gigabytes("saved"),
    "  largest transient": _gigabytes("transient"),
    "multiply-adds, G": lambda cost: f"{cost.multiply_adds / 1e9:.1f}",
    "parameters, M": lambda cost: f"{cost.parameters / 1e6:.1f}",
}
