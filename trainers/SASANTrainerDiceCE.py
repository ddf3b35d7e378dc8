from nnunet_ext.networks import SASAN
from nnunet_ext.training import PluginTrainer


class SASANTrainerDiceCE(PluginTrainer):
    """SASAN with nnU-Net's own loss: the network's part in `SASANTrainer`'s result."""

    network_class = SASAN
