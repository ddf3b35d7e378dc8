from nnunet_ext.networks import UMamba
from nnunet_ext.training import PluginTrainer


class UMambaBotNoMambaTrainer(PluginTrainer):
    """UMambaBot without its Mamba layer: the effect of Mamba on the result."""

    network_class = UMamba
    network_settings = {"variant": "no_mamba"}
