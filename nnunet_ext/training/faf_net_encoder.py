"""FAF-Net on an encoder of the user's choice, which plan, checkpoint and log of the training keep."""

import copy
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.nnunet.encoder_variables import ENCODER, ENCODER_FROZEN, ENCODER_WEIGHTS
from nnunet_ext.training.encoder_choice import NONE, EncoderChoice, chosen_weights
from nnunet_ext.training.faf_net import FAFNetBaseTrainer
from nnunet_ext.training.schedules import EpochScheduler
from nnunet_ext.utils.state_dicts import is_file_name
from nnunet_ext.weights.encoders import encoder_weights


class ChosenEncoderTrainer(FAFNetBaseTrainer):
    """FAF-Net on a pretrained encoder, chosen by the attributes below or in the environment.

    NNUNET_EXT_ENCODER (such as ``timm:resnet50``), NNUNET_EXT_ENCODER_FROZEN (0 or 1) and NNUNET_EXT_ENCODER_WEIGHTS
    (``timm``, a file, or ``none``) replace `encoder`, `encoder_frozen` and `encoder_weights`. The choice is written to
    the training's log, to the plans.json of its results and to its checkpoints, so prediction, export, resumption and
    further folds need no variable. All folds of a results folder have the same encoder.

    Subclasses may set these attributes: a class of three lines is a fixed encoder under a name of its own.
    """

    network_settings = {"feature_channels": 48}
    """Narrow features, as the convolutions of AFF, which a frozen encoder leaves as most of a step, grow with their
    square."""
    encoder = "timm:tf_efficientnet_lite0"
    """Small: 0.7 M parameters up to its stride of 16, which a CPU trains with, too."""
    encoder_frozen = True
    encoder_weights: str | None = "timm"
    encoder_learning_rate = 1e-3
    """Largest learning rate of an encoder that is trained from pretrained weights: the authors'. A rate for layers that
    start from scratch destroys them: with 2e-2, EfficientNet-Lite0 found nothing at all after 300 iterations."""

    # nnU-Net reads this signature by name: it must be exactly its own.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        earlier = EncoderChoice.of_trainings(self.output_folder_base, configuration)
        self.choice = EncoderChoice.from_environment(
            earlier or EncoderChoice.from_plans(plans, configuration) or self.default_choice()
        )
        if earlier not in (None, self.choice):
            raise ValueError(
                f"{self.output_folder_base} holds trainings with the encoder {earlier}, and {ENCODER} and "
                f"{ENCODER_FROZEN} ask for {self.choice}: all folds of a model have one encoder. Unset the variables, "
                f"move the folder away, or give a subclass of {type(self).__name__} a name of its own"
            )
        plans = self.choice.written_to(plans, configuration)
        self.plans_manager = PlansManager(plans)
        self.configuration_manager = self.plans_manager.get_configuration(configuration)
        self.my_init_kwargs["plans"] = plans  # checkpoints have it
        self.encoder_weights = chosen_weights(self.encoder_weights)

    @classmethod
    def default_choice(cls) -> EncoderChoice:
        """The choice of the class."""
        return EncoderChoice(cls.encoder, cls.encoder_frozen)

    @classmethod
    def build_network_architecture(
        cls, plans_manager: Any, configuration_manager: Any, *arguments: Any, **named: Any
    ) -> nn.Module:
        """Builds the encoder that the plan names, otherwise that of environment and class."""
        if "encoder" not in configuration_manager.network_arch_init_kwargs:
            configuration = copy.deepcopy(configuration_manager.configuration)
            choice = EncoderChoice.from_environment(cls.default_choice())
            configuration["architecture"]["arch_kwargs"] |= choice.arguments()
            configuration_manager = ConfigurationManager(configuration)
        return super().build_network_architecture(plans_manager, configuration_manager, *arguments, **named)

    def parameter_groups(self) -> list[dict[str, Any]]:
        encoder = self.plain_network.encoder
        of_encoder = [*encoder.to_rgb.parameters(), *encoder.backbone.parameters()]
        known = set(of_encoder)
        others = [parameter for parameter in self.network.parameters() if parameter not in known]
        # The log shows the rate of the first group.
        return [{"params": others}, {"params": of_encoder, "lr": self._encoder_rate()}]

    def _encoder_rate(self) -> float:
        rate = self.learning_rate
        return rate if self.encoder_weights is None else min(rate, self.encoder_learning_rate)

    def load_encoder(self) -> None:
        weights = self.encoder_weights
        if weights is None:
            if self.choice.encoder_frozen:
                raise ValueError(
                    f"a frozen encoder needs weights, and {ENCODER_WEIGHTS} is {NONE!r}: give weights, or train the "
                    f"encoder ({ENCODER_FROZEN}=0)"
                )
            return
        if weights in self.plain_network.encoder.backbone.known_weights:
            self.plain_network.load_encoder_weights(weights)
        elif is_file_name(weights):
            self.plain_network.load_encoder_weights(encoder_weights(self.choice.encoder, weights))
        else:
            known = ", ".join(self.plain_network.encoder.backbone.known_weights)
            raise ValueError(
                f"{ENCODER_WEIGHTS}={weights!r} is no file and none of the weights {known} of this encoder"
            )

    def on_train_start(self) -> None:
        super().on_train_start()
        self.print_to_log_file(f"Encoder: {self.choice}; initial weights: {self.encoder_weights or NONE}")
        if not self.choice.encoder_frozen:
            self.print_to_log_file(f"Initial learning rate of the encoder: {self._encoder_rate()}")

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"encoder": self.choice.arguments() | {"weights": self.encoder_weights}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.encoder_weights = state["encoder"]["weights"]
        scheduler = self.lr_scheduler
        # A user's subclass may have an optimiser and a schedule of its own.
        if isinstance(scheduler, EpochScheduler) and len(scheduler.rates) == 2:
            scheduler.rates[1] = self._encoder_rate()
        backbone = self.plain_network.encoder.backbone
        backbone.frozen_norms = self.encoder_weights is not None
        backbone.train(backbone.training and not self.choice.encoder_frozen)
