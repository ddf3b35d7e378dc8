from nnunet_ext.networks import UMamba
from nnunet_ext.training import PluginTrainer


class UMambaEncTrainer(PluginTrainer):
    """U-Mamba with Mamba in the encoder."""

    network_class = UMamba
    network_settings = {"variant": "Enc"}
