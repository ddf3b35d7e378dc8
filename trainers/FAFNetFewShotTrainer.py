from nnunet_ext.training import FAFNetSupervoxelTrainer


class FAFNetFewShotTrainer(FAFNetSupervoxelTrainer):
    """FAF-Net on the plan's own encoder, from scratch; episodes from supervoxels, without labels.

    The authors' encoder is trained already. Deviations for one that is not: a rate of 2e-2 that falls to 0, four
    episodes a batch, and up to eight supervoxels of the same two slices in each, which cost one encoding.
    """

    network_settings = {"encoder": "plan"}
    learning_rate = 2e-2
    anneals = True
    episodes = 4
    classes = 8
