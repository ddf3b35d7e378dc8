from nnunet_ext.networks import UMamba
from nnunet_ext.training import PluginTrainer


class UMambaBotTrainer(PluginTrainer):
    """U-Mamba with Mamba at the bottleneck only."""

    network_class = UMamba
    network_settings = {"variant": "Bot"}
