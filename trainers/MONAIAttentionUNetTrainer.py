from nnunet_ext.training import MONAIStagesTrainer


class MONAIAttentionUNetTrainer(MONAIStagesTrainer):
    """Attention U-Net, Oktay et al., MIDL 2018, by MONAI's `AttentionUnet`."""

    network_class = "monai.networks.nets.AttentionUnet"
