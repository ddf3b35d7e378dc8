from nnunet_ext.training import FAFNetLabelTrainer


class FAFNetTrainer(FAFNetLabelTrainer):
    """FAF-Net on the plan's own encoder, from scratch; episodes from the labels of the training fold."""

    network_settings = {"encoder": "plan"}
