"""Bounds on the training that a user sets in the environment, for short or equally long runs."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf, nan

EPOCHS = "NNUNET_EXT_EPOCHS"
ITERATIONS = "NNUNET_EXT_ITERATIONS"
VAL_ITERATIONS = "NNUNET_EXT_VAL_ITERATIONS"
LEARNING_RATE = "NNUNET_EXT_LEARNING_RATE"
MOMENTUM = "NNUNET_EXT_MOMENTUM"


@dataclass(frozen=True)
class Budget:
    """How long a training runs; None leaves nnU-Net's own value.

    Attributes:
        epochs: Number of epochs (nnU-Net: 1000).
        iterations: Training iterations per epoch (nnU-Net: 250).
        val_iterations: Validation iterations per epoch (nnU-Net: 50).
    """

    epochs: int | None = None
    iterations: int | None = None
    val_iterations: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Budget":
        """Reads NNUNET_EXT_EPOCHS, NNUNET_EXT_ITERATIONS and NNUNET_EXT_VAL_ITERATIONS.

        Raises:
            ValueError: if one of them is set to anything but a positive integer.
        """
        return cls(*(_positive(environment, name) for name in (EPOCHS, ITERATIONS, VAL_ITERATIONS)))

    def environment(self) -> dict[str, str]:
        """The environment variables that give this budget."""
        values = dict(zip((EPOCHS, ITERATIONS, VAL_ITERATIONS), asdict(self).values(), strict=True))
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class StepSettings:
    """How nnU-Net's optimiser, SGD, steps; None leaves nnU-Net's own value.

    nnU-Net's momentum averages over a hundred steps, which is too long for a training of a few hundred.

    Attributes:
        learning_rate: Initial learning rate (nnU-Net: 0.01).
        momentum: Nesterov momentum, below 1 (nnU-Net: 0.99).
    """

    learning_rate: float | None = None
    momentum: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "StepSettings":
        """Reads NNUNET_EXT_LEARNING_RATE and NNUNET_EXT_MOMENTUM.

        Raises:
            ValueError: if one of them is set to anything but a positive number, or the momentum to 1 or more.
        """
        return cls(_number(environment, LEARNING_RATE, inf), _number(environment, MOMENTUM, 1))

    def environment(self) -> dict[str, str]:
        """The environment variables that give these settings."""
        values = {LEARNING_RATE: self.learning_rate, MOMENTUM: self.momentum}
        return {name: str(value) for name, value in values.items() if value is not None}


def _number(environment: Mapping[str, str], name: str, below: float) -> float | None:
    text = environment.get(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not 0 < number < below:
        limit = "" if below == inf else f" below {below}"
        raise ValueError(f"the environment variable {name}={text!r} must be a positive number{limit}, for example 0.05")
    return number


def _positive(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise ValueError(f"the environment variable {name}={text!r} must be a positive integer, for example 50")
    return int(text)
