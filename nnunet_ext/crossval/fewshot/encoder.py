"""The encoder that a user chooses for the trainings of a protocol."""

import os
from collections.abc import Mapping

from nnunet_ext.nnunet.encoder_variables import ENCODER, ENCODER_FROZEN, ENCODER_WEIGHTS
from nnunet_ext.nnunet.trainers import find_trainer


def encoder_environment(
    trainer: str, encoder: str | None, weights: str | None, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The variables of a user's choice, for trainers that have one; options replace the environment's.

    Args:
        trainer: Name of the trainer.
        encoder: Name of the encoder; None: as the environment says.
        weights: Its initial weights; None: likewise.
        environment: Holds the variables.

    Raises:
        ValueError: for an option that the trainer would ignore.
    """
    given = {ENCODER: encoder, ENCODER_WEIGHTS: weights}
    chosen = {name: value for name, value in given.items() if value is not None}
    # A trainer with a choice has a default one.
    if hasattr(find_trainer(trainer), "default_choice"):
        return {
            name: environment[name] for name in (ENCODER, ENCODER_WEIGHTS, ENCODER_FROZEN) if name in environment
        } | chosen
    if chosen:
        option = "--encoder" if ENCODER in chosen else "--encoder-weights"
        raise ValueError(
            f"{option}: the encoder of {trainer} cannot be chosen; give a trainer for which it can, with -tr"
        )
    return {}
