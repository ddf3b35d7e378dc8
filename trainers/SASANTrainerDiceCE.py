from nnunet_ext.networks import SASAN
from nnunet_ext.training import PluginTrainer


class SASANTrainerDiceCE(PluginTrainer):
    """SASAN with nnU-Net's own loss, to isolate the network's contribution to the result of `SASANTrainer`."""

    network_class = SASAN
