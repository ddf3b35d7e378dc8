from nnunet_ext.training import MONAITrainer


class MONAIHighResNetTrainer(MONAITrainer):
    """HighRes3DNet, Li et al., IPMI 2017, by MONAI's `HighResNet`: dilated convolutions at full resolution."""

    network_class = "monai.networks.nets.HighResNet"
