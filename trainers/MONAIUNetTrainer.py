from nnunet_ext.training import MONAIStagesTrainer


class MONAIUNetTrainer(MONAIStagesTrainer):
    """3D U-Net, Çiçek et al., MICCAI 2016 (in 2D: Ronneberger et al., MICCAI 2015), by MONAI's `UNet`."""

    network_class = "monai.networks.nets.UNet"
    network_settings = {"num_res_units": 0}
