from nnunet_ext.training import EMNetBaseTrainer


class EMNetTrainer(EMNetBaseTrainer):
    """EM-Net as the paper describes it: its FFT runs over space."""
