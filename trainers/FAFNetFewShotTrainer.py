from nnunet_ext.training import FAFNetSupervoxelTrainer


class FAFNetFewShotTrainer(FAFNetSupervoxelTrainer):
    """FAF-Net on the plan's own encoder, from scratch; episodes from supervoxels, without labels."""

    network_settings = {"encoder": "plan"}
    # The authors' 1e-3 and one episode are for an encoder that is trained already.
    learning_rate = 1e-2
    episodes = 4
