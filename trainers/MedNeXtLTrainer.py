from nnunet_ext.training import MedNeXtBaseTrainer


class MedNeXtLTrainer(MedNeXtBaseTrainer):
    """MedNeXt-L, a larger one of the paper's four sizes."""

    variant = "L"
