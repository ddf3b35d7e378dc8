from nnunet_ext.training import FAFNetSupervoxelTrainer


class FAFNetFewShotTrainer(FAFNetSupervoxelTrainer):
    """FAF-Net on the plan's own encoder, from scratch; episodes from supervoxels, without labels.

    The authors' encoder is pretrained. Training one from scratch requires these changes: a learning rate of 2e-2 that
    decays to 0, four episodes per batch, and up to eight supervoxels of the same two slices in each episode, which
    share one encoding.
    """

    network_settings = {"encoder": "plan"}
    learning_rate = 2e-2
    anneals = True
    episodes = 4
    classes = 8
