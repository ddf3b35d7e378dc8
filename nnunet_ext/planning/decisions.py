"""The decisions of a plan with their reasons, as text for people and as JSON for scripts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import convert_dataset_name_to_id

from nnunet_ext.planning.planner import GIGABYTE, MARGIN, TracedPlanner
from nnunet_ext.planning.report import PlanCost, cost_table, plan_costs
from nnunet_ext.planning.verification import flat_axis

WHY_MISSING = "the images are 2D, or no larger than about four patches (3d_lowres)"


def with_data(plans: Mapping[str, Any]) -> list[str]:
    """Configurations of a plan that have preprocessed data of their own."""
    return [name for name, configuration in plans["configurations"].items() if "data_identifier" in configuration]


@dataclass(frozen=True)
class Decisions:
    """The decisions of a planner.

    Attributes:
        planner: The planner, after planning.
        plans: Its plans.
        requested: Configurations that were asked for by name.
        preprocessed: Whether the data of each configuration exist already.
        file: The plans file; None if nothing was written.
    """

    planner: TracedPlanner
    plans: dict[str, Any]
    requested: tuple[str, ...]
    preprocessed: Mapping[str, bool]
    file: Path | None

    @cached_property
    def costs(self) -> list[PlanCost]:
        """The cost of training each configuration."""
        return plan_costs(self.planner.trainer, self.plans, self.planner.dataset_json)

    @property
    def not_planned(self) -> list[str]:
        """Configurations that were asked for, but that the images do not need."""
        return [name for name in self.requested if name not in self.plans["configurations"]]

    @property
    def flat_axis(self) -> int | None:
        """Axis of the array along which all images have size 1."""
        return flat_axis(self.planner.dataset_fingerprint["shapes_after_crop"], self.plans["transpose_forward"][0])

    @property
    def commands(self) -> list[str]:
        """The commands of nnU-Net that come next."""
        number, name = convert_dataset_name_to_id(self.planner.dataset_name), self.plans["plans_name"]
        todo = [configuration for configuration, done in self.preprocessed.items() if not done]
        configurations = self.plans["configurations"]
        example = "3d_fullres" if "3d_fullres" in configurations else next(iter(configurations))
        commands = [f"nnUNetv2_preprocess -d {number} -plans_name {name} -c {' '.join(todo)}"] if todo else []
        return [*commands, f"nnUNetv2_train {number} {example} 0 -tr {self.planner.trainer.__name__} -p {name}"]

    def text(self) -> str:
        planner, plans = self.planner, self.plans
        gpu = f"{planner.UNet_vram_target_GB:g} GB of GPU memory less {MARGIN:.0%}"
        target = f"{planner.target / GIGABYTE:.2f} GB ({gpu})"
        aim = (
            f"regardless of memory; the target is {target}" if planner.used_preset else f"training in at most {target}"
        )
        lines = [
            f"{plans['plans_name']} for {planner.dataset_name}: {planner.trainer.__name__}, {aim}",
            "",
            cost_table(self.costs),
            "",
            "Total: parameters + optimiser state + the larger of gradients and saved + transient.",
            "",
        ]
        if (axis := self.flat_axis) is not None:
            lines += [
                f"All images are flat: size 1 along axis {axis} of (0, 1, 2), as nnU-Net reads them; planned in 2D."
            ]
            lines += [""]
        for name in plans["configurations"]:
            if name in planner.reasons:
                data = plans["configurations"][name]["data_identifier"]
                lines.append(f"{name}: {planner.reasons[name]}; data: {data}")
        lines += [f"{name}: not planned, {WHY_MISSING}" for name in self.not_planned]
        if self.file is None:
            return "\n".join([*lines, "", "Nothing was written (--dry-run)."])
        lines += ["", f"Written: {self.file}", "Next:"]
        if all(self.preprocessed.values()):
            lines.append("  (nothing to preprocess: the data already exist)")
        return "\n".join([*lines, *(f"  {command}" for command in self.commands)])

    def as_json(self) -> dict[str, Any]:
        """The same for scripts; memory in bytes, multiply-adds of one forward pass of one patch."""
        planner, configurations = self.planner, self.plans["configurations"]
        costs = {}
        for cost in self.costs:
            costs[cost.name] = {key: value for key, value in asdict(cost).items() if key != "name"} | {
                "memory": {"total": cost.memory.total, **asdict(cost.memory)},
                "reason": planner.reasons.get(cost.name),
                "data_identifier": configurations[cost.name].get("data_identifier"),
                "preprocessed": self.preprocessed.get(cost.name),
            }
        return {
            "plans_name": self.plans["plans_name"],
            "file": None if self.file is None else str(self.file),
            "dataset": planner.dataset_name,
            "trainer": planner.trainer.__name__,
            "gpu_memory_gb": planner.UNet_vram_target_GB,
            "target_bytes": planner.target,
            "preset": planner.used_preset,
            "flat_axis": self.flat_axis,
            "configurations": costs,
            "not_planned": dict.fromkeys(self.not_planned, WHY_MISSING),
            "next": self.commands,
        }
