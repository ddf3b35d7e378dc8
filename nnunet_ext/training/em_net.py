"""Training of EM-Net as its authors train it."""

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import SGD

from nnunet_ext.networks import EMNet
from nnunet_ext.ops import describe_backend
from nnunet_ext.training.schedules import WarmUpCosineScheduler
from nnunet_ext.training.trainer import PluginTrainer

_WARM_UP_EPOCHS = 10
_FULL_EPOCHS = 1000


class EMNetBaseTrainer(PluginTrainer):
    """EM-Net with nnU-Net's loss and the authors' optimiser: SGD 0.01, momentum 0.99, weight decay 3e-5, ten warm-up
    epochs, then cosine. Variants set `network_settings`.
    """

    network_class = EMNet

    def configure_optimizers(self) -> tuple[SGD, PolyLRScheduler]:
        # The values of nnU-Net's trainer are the authors'; a user's subclass may change them as usual.
        optimizer = SGD(
            self.network.parameters(), self.initial_lr, momentum=0.99, nesterov=True, weight_decay=self.weight_decay
        )
        # A shortened budget shortens the warm-up alike.
        warm_up = min(_WARM_UP_EPOCHS, max(1, round(_WARM_UP_EPOCHS * self.num_epochs / _FULL_EPOCHS)))
        return optimizer, WarmUpCosineScheduler(optimizer, self.initial_lr, self.num_epochs, warm_up)

    def on_train_start(self) -> None:
        super().on_train_start()
        backend = describe_backend(self.device.type, compiled=self._do_i_compile())
        self.print_to_log_file(f"Selective scan on {self.device.type}: {backend}")
