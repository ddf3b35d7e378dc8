from nnunet_ext.training import MedNeXtBaseTrainer


class MedNeXtMTrainer(MedNeXtBaseTrainer):
    """MedNeXt-M, a larger one of the paper's four sizes."""

    variant = "M"
