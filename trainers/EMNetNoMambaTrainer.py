from nnunet_ext.training import EMNetBaseTrainer


class EMNetNoMambaTrainer(EMNetBaseTrainer):
    """EM-Net without Mamba, which is replaced by the identity: Mamba's part in the result."""

    network_settings = {"variant": "no_mamba"}
