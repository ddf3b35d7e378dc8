"""Learning-rate schedules that depend on the epoch alone, so that a resumed training continues exactly."""

from abc import ABC, abstractmethod
from math import cos, pi

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer

_WARM_UP_EPOCHS = 10
_FULL_EPOCHS = 1000


def warm_up_epochs(epochs: int) -> int:
    """Epochs of warm-up: ten of 1000; a shorter training has a proportionally shorter one, of at least one epoch."""
    return min(_WARM_UP_EPOCHS, max(1, round(_WARM_UP_EPOCHS * epochs / _FULL_EPOCHS)))


def warm_up_cosine(epoch: int, epochs: int, warm_up: int) -> float:
    """Factor of the learning rate: linear up to 1 over `warm_up` epochs, then half a cosine down towards 0.

    (e + 1) / w for e < w, then (1 + cos(pi (e - w) / (E - w))) / 2.
    """
    if epoch < warm_up:
        return (epoch + 1) / warm_up
    return (1 + cos(pi * (epoch - warm_up) / max(1, epochs - warm_up))) / 2


class EpochScheduler(PolyLRScheduler, ABC):
    """A factor of the initial learning rates for every epoch, in the form of nnU-Net's schedulers.

    nnU-Net's own ones give all groups of an optimiser the same rate; here each keeps the ratio that it starts with.

    Args:
        optimizer: Optimiser whose learning rates are set; its groups have their rates at factor 1.
        initial_lr: Rate of the first group at factor 1.
        epochs: E, epochs of the whole training.

    Attributes:
        rates: Rates of the optimiser's groups at factor 1.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, epochs: int) -> None:
        self.rates = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer, initial_lr, epochs)

    @abstractmethod
    def factor(self, epoch: int) -> float:
        """Factor of the initial learning rate in an epoch, counted from 0."""

    def step(self, current_step: int | None = None) -> None:
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        factor = self.factor(current_step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class PolyScheduler(EpochScheduler):
    """nnU-Net's schedule, (1 - e / E)^0.9; arguments as in `EpochScheduler`."""

    def factor(self, epoch: int) -> float:
        return float((1 - epoch / self.max_steps) ** self.exponent)


class WarmUpCosineScheduler(EpochScheduler):
    """The schedule `warm_up_cosine`.

    Args:
        optimizer: As in `EpochScheduler`.
        initial_lr: As in `EpochScheduler`.
        epochs: As in `EpochScheduler`.
        warm_up: w, epochs of warm-up.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, epochs: int, warm_up: int) -> None:
        self.warm_up = warm_up
        super().__init__(optimizer, initial_lr, epochs)

    def factor(self, epoch: int) -> float:
        return warm_up_cosine(epoch, self.max_steps, self.warm_up)


class StepDecayScheduler(EpochScheduler):
    """decay^k after the k-th of n equal parts of the training.

    Args:
        optimizer: As in `EpochScheduler`.
        initial_lr: As in `EpochScheduler`.
        epochs: As in `EpochScheduler`.
        decay: Factor per part.
        parts: n, number of parts.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, epochs: int, decay: float, parts: int) -> None:
        self.decay, self.parts = decay, parts
        super().__init__(optimizer, initial_lr, epochs)

    def factor(self, epoch: int) -> float:
        return self.decay ** (epoch * self.parts // self.max_steps)
