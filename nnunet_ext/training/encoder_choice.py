"""The encoder that a user chooses for FAF-Net, in the environment, and where a training keeps the choice."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.nnunet.encoder_variables import ENCODER, ENCODER_FROZEN, ENCODER_WEIGHTS

NONE = "none"
_ARGUMENTS = ("encoder", "encoder_frozen")


@dataclass(frozen=True)
class EncoderChoice:
    """Arguments of `FAFNet` that say which encoder it has.

    Attributes:
        encoder: Its name, such as ``"timm:resnet50"``.
        encoder_frozen: Whether it is never trained.
    """

    encoder: str
    encoder_frozen: bool

    @classmethod
    def from_environment(cls, default: "EncoderChoice", environment: Mapping[str, str] = os.environ) -> "EncoderChoice":
        """NNUNET_EXT_ENCODER and NNUNET_EXT_ENCODER_FROZEN, each of which replaces a default.

        Raises:
            ValueError: if NNUNET_EXT_ENCODER_FROZEN is neither 0 nor 1.
        """
        frozen = environment.get(ENCODER_FROZEN)
        if frozen not in (None, "0", "1"):
            raise ValueError(f"the environment variable {ENCODER_FROZEN}={frozen!r} must be 0 or 1")
        return cls(
            environment.get(ENCODER, default.encoder),
            default.encoder_frozen if frozen is None else frozen == "1",
        )

    @classmethod
    def from_plans(cls, plans: dict[str, Any], configuration: str) -> "EncoderChoice | None":
        """The choice that `written_to` left in plans, or that a planner made; None if there is none."""
        arguments = PlansManager(plans).get_configuration(configuration).network_arch_init_kwargs
        if "encoder" not in arguments:
            return None
        return cls(arguments["encoder"], bool(arguments.get("encoder_frozen", False)))

    @classmethod
    def of_trainings(cls, folder: str | Path, configuration: str) -> "EncoderChoice | None":
        """The choice of a folder of nnU-Net's results, whose folds share a plan; None before the first checkpoint."""
        plans = Path(folder, "plans.json")
        if not plans.is_file() or not any(Path(folder).glob("fold_*/checkpoint_*.pth")):
            return None
        return cls.from_plans(load_json(str(plans)), configuration)

    def written_to(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Plans whose configuration names this encoder among the network's arguments."""
        plans = copy.deepcopy(plans)
        # A configuration that inherits from another would lose what it inherits of the architecture.
        architecture = copy.deepcopy(PlansManager(plans).get_configuration(configuration).configuration["architecture"])
        architecture["arch_kwargs"] |= self.arguments()
        plans["configurations"][configuration]["architecture"] = architecture
        return plans

    def arguments(self) -> dict[str, Any]:
        """Arguments of `FAFNet`."""
        return {name: getattr(self, name) for name in _ARGUMENTS}

    def __str__(self) -> str:
        return f"{self.encoder}, {'frozen' if self.encoder_frozen else 'trained'}"


def chosen_weights(default: str | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """NNUNET_EXT_ENCODER_WEIGHTS (a name, a file, or none), or a default."""
    given = environment.get(ENCODER_WEIGHTS)
    return default if given is None else None if given == NONE else given
