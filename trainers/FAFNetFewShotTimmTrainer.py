from nnunet_ext.training import ChosenEncoderTrainer, FAFNetSupervoxelTrainer


class FAFNetFewShotTimmTrainer(ChosenEncoderTrainer, FAFNetSupervoxelTrainer):
    """FAF-Net on a pretrained encoder of timm, which NNUNET_EXT_ENCODER names; episodes from supervoxels.

    Episodes are as those of FAFNetFewShotTrainer: four per batch, with up to eight supervoxels each. So is the learning
    rate, as all but the encoder starts from scratch. The encoder is trained with the rest, at a rate of its own: after
    long trainings, a frozen one finds less.
    """

    encoder_frozen = False
    learning_rate = 2e-2
    anneals = True
    episodes = 4
    classes = 8
