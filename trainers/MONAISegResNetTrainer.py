from nnunet_ext.training import MONAITrainer


class MONAISegResNetTrainer(MONAITrainer):
    """SegResNet, Myronenko, BrainLes 2018, by MONAI's `SegResNet`: 32 filters and dropout of 0.2, as in the paper.

    The paper's variational autoencoder, which regularises the encoder, is not part of the class.
    """

    network_class = "monai.networks.nets.SegResNet"
    network_settings = {"init_filters": 32, "dropout_prob": 0.2}
    patch_multiple = 8
