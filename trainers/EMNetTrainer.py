from nnunet_ext.training import EMNetBaseTrainer


class EMNetTrainer(EMNetBaseTrainer):
    """EM-Net as described in the paper, with an FFT over space."""
