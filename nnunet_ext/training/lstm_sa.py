"""Training of SALSTM and LSTMSA, as their authors train them but for the learning rate."""

from collections.abc import Mapping
from typing import Any

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn
from torch.optim import Adam

from nnunet_ext.training.trainer import PluginTrainer

_LEARNING_RATE = 3e-4
_WEIGHT_DECAY = 1e-4
_DICE_WEIGHT = _CE_WEIGHT = 0.5


class SliceNetworkTrainer(PluginTrainer):
    """Adam with weight decay 1e-4, polynomial decay with exponent 0.9, and nnU-Net's Dice and cross-entropy with weight
    0.5 each, as the authors train. Deviation: the learning rate is 3e-4, the authors' is 1e-4. Subclasses name the
    network and may name a backbone.
    """

    network_settings: Mapping[str, Any] = {"backbone": None, "backbone_arguments": None}

    def configure_optimizers(self) -> tuple[Adam, PolyLRScheduler]:
        optimizer = Adam(self.network.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        return optimizer, PolyLRScheduler(optimizer, _LEARNING_RATE, self.num_epochs, exponent=0.9)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        per_output = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
        per_output.weight_dice, per_output.weight_ce = _DICE_WEIGHT, _CE_WEIGHT
        return loss
