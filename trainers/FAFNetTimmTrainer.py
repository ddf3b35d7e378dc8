from nnunet_ext.training import ChosenEncoderTrainer, FAFNetLabelTrainer


class FAFNetTimmTrainer(ChosenEncoderTrainer, FAFNetLabelTrainer):
    """FAF-Net on a pretrained encoder of timm, which NNUNET_EXT_ENCODER names; episodes from labels."""
