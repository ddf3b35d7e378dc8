"""A configuration of nnU-Net's plans, as networks are built from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.nnunet.json_files import read_json
from nnunet_ext.nnunet.trainers import build_network


@dataclass(frozen=True)
class PlanSetting:
    """A configuration of a plan, with all that a network is built from.

    Attributes:
        plans: nnU-Net's ``PlansManager``.
        configuration: nnU-Net's ``ConfigurationManager``.
        dataset_json: Content of dataset.json.
        input_channels: Channels of the input.
        num_classes: Number of logits.
    """

    plans: Any
    configuration: Any
    dataset_json: dict[str, Any]
    input_channels: int
    num_classes: int

    def network(self, trainer: Any, deep_supervision: bool) -> Any:
        """The network that a trainer builds; see `build_network`."""
        return build_network(
            trainer,
            self.plans,
            self.configuration,
            input_channels=self.input_channels,
            num_classes=self.num_classes,
            deep_supervision=deep_supervision,
        )


def plan_setting(plans: Any, configuration: str, dataset_json: dict[str, Any]) -> PlanSetting:
    """The setting of a configuration in nnU-Net's ``PlansManager``."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    chosen = plans.get_configuration(configuration)
    channels = determine_num_input_channels(plans, chosen, dataset_json)
    classes = plans.get_label_manager(dataset_json).num_segmentation_heads
    return PlanSetting(plans, chosen, dataset_json, channels, classes)


def read_plan(plans: Path, configuration: str) -> PlanSetting:
    """Reads the setting of a configuration from nnU-Net's plans file, with dataset.json in the same folder.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an unknown configuration (lists the known ones).
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset_file = plans.parent / "dataset.json"
    for path in (plans, dataset_file):
        if not path.is_file():
            raise FileNotFoundError(f"no such file: {path}")
    manager = PlansManager(str(plans))
    if configuration not in manager.plans["configurations"]:
        known = ", ".join(manager.plans["configurations"])
        raise ValueError(f"unknown configuration {configuration!r} in {plans}; known: {known}")
    return plan_setting(manager, configuration, read_json(dataset_file))
