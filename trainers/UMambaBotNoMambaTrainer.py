from nnunet_ext.networks import UMamba
from nnunet_ext.training import PluginTrainer


class UMambaBotNoMambaTrainer(PluginTrainer):
    """UMambaBot without its Mamba layer, to isolate Mamba's contribution."""

    network_class = UMamba
    network_settings = {"variant": "no_mamba"}
