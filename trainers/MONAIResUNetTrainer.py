from nnunet_ext.training import MONAIStagesTrainer


class MONAIResUNetTrainer(MONAIStagesTrainer):
    """Residual U-Net, Kerfoot et al., STACOM 2018, by MONAI's `UNet` with two convolutions per residual unit."""

    network_class = "monai.networks.nets.UNet"
    network_settings = {"num_res_units": 2}
