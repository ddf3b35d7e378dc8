from nnunet_ext.training import MedNeXtBaseTrainer


class MedNeXtBTrainer(MedNeXtBaseTrainer):
    """MedNeXt-B, a larger one of the paper's four sizes."""

    variant = "B"
