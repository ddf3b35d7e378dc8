from nnunet_ext.training import EMNetBaseTrainer


class EMNetNoMambaTrainer(EMNetBaseTrainer):
    """EM-Net with Mamba replaced by the identity, to isolate Mamba's contribution."""

    network_settings = {"variant": "no_mamba"}
