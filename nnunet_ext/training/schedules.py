"""Learning-rate schedules that depend on the epoch alone, so that a resumed training goes on as if never stopped."""

from math import cos, pi

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer


def warm_up_cosine(epoch: int, epochs: int, warm_up: int) -> float:
    """Factor of the learning rate: linear up to 1 over `warm_up` epochs, then half a cosine down towards 0.

    (e + 1) / w for e < w, then (1 + cos(pi (e - w) / (E - w))) / 2.
    """
    if epoch < warm_up:
        return (epoch + 1) / warm_up
    return (1 + cos(pi * (epoch - warm_up) / max(1, epochs - warm_up))) / 2


class WarmUpCosineScheduler(PolyLRScheduler):
    """`warm_up_cosine` in the form of nnU-Net's schedulers, which are told the epoch.

    Args:
        optimizer: Whose learning rates are set.
        initial_lr: The rate at factor 1.
        epochs: E, epochs of the whole training.
        warm_up: w, epochs of warm-up.
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float, epochs: int, warm_up: int) -> None:
        self.warm_up = warm_up
        super().__init__(optimizer, initial_lr, epochs)

    def step(self, current_step: int | None = None) -> None:
        if current_step is None or current_step == -1:
            current_step = self.ctr
            self.ctr += 1
        rate = self.initial_lr * warm_up_cosine(current_step, self.max_steps, self.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
