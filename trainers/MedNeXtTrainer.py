from nnunet_ext.training import MedNeXtBaseTrainer


class MedNeXtTrainer(MedNeXtBaseTrainer):
    """MedNeXt-S, the smallest of the paper's four sizes."""

    variant = "S"
