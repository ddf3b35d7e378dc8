from nnunet_ext.training import EMNetBaseTrainer


class EMNetSGDTrainer(EMNetBaseTrainer):
    """EM-Net with the authors' optimiser."""

    authors_optimizer = True
