"""Training by AdamW, for networks with attention or with large kernels."""

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import AdamW, Optimizer

from nnunet_ext.training.parameter_groups import decay_groups
from nnunet_ext.training.schedules import WarmUpCosineScheduler, warm_up_epochs
from nnunet_ext.training.trainer import PluginTrainer


class AdamWTrainer(PluginTrainer):
    """nnU-Net's loss and AdamW with weight decay on the weights alone: norms, biases and positions do not decay."""

    learning_rate = 1e-4
    adamw_weight_decay = 1e-2
    """PyTorch's default."""
    warms_up = True
    """Whether the rate rises for ten epochs of 1000 and falls by half a cosine; otherwise nnU-Net's polynomial."""

    def configure_optimizers(self) -> tuple[Optimizer, PolyLRScheduler]:
        rate = self.learning_rate
        optimizer = AdamW(decay_groups(self.network, self.adamw_weight_decay), rate)
        if self.warms_up:
            return optimizer, WarmUpCosineScheduler(optimizer, rate, self.num_epochs, warm_up_epochs(self.num_epochs))
        return optimizer, PolyLRScheduler(optimizer, rate, self.num_epochs)
