"""Training of EM-Net."""

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import SGD, AdamW, Optimizer

from nnunet_ext.networks import EMNet
from nnunet_ext.ops import describe_backend
from nnunet_ext.training.parameter_groups import decay_groups, load_ungrouped
from nnunet_ext.training.schedules import WarmUpCosineScheduler, warm_up_epochs
from nnunet_ext.training.trainer import PluginTrainer

_LEARNING_RATE, _WEIGHT_DECAY = 1e-3, 1e-2


class EMNetBaseTrainer(PluginTrainer):
    """EM-Net with nnU-Net's loss, AdamW 1e-3 with weight decay 1e-2 on the weights, and the authors' schedule: ten
    warm-up epochs of 1000, then half a cosine. Norms, biases, scales, positions and Mamba's A and D do not decay.

    Deviation: the authors train with SGD, at one rate for all weights. Relative to their size, gradients of the
    full-resolution convolutions are a hundred times those of the stages, so that SGD falls behind (docs/em_net.md).

    Subclasses change `network_settings` for variants, and set `authors_optimizer` for the authors' SGD 0.01 with
    momentum 0.99 and weight decay 3e-5 on all parameters.
    """

    network_class = EMNet
    network_settings = {"variant": "EM-Net", "efl_layout": "spatial"}
    authors_optimizer = False

    def configure_optimizers(self) -> tuple[Optimizer, PolyLRScheduler]:
        optimizer: Optimizer
        if self.authors_optimizer:
            # The values of nnU-Net's trainer are the authors'; a user's subclass may change them as usual.
            rate = self.initial_lr
            options = {"momentum": 0.99, "nesterov": True, "weight_decay": self.weight_decay}
            optimizer = SGD(self.network.parameters(), rate, **options)
        else:
            rate = _LEARNING_RATE
            optimizer = AdamW(decay_groups(self.network, _WEIGHT_DECAY), rate)
            load_ungrouped(optimizer, self.network)
        return optimizer, WarmUpCosineScheduler(optimizer, rate, self.num_epochs, warm_up_epochs(self.num_epochs))

    def on_train_start(self) -> None:
        super().on_train_start()
        backend = describe_backend(self.device.type, compiled=self._do_i_compile())
        self.print_to_log_file(f"Selective scan on {self.device.type}: {backend}")
