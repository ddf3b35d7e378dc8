from nnunet_ext.training import FAFNetSupervoxelTrainer


class FAFNetFewShotTrainer(FAFNetSupervoxelTrainer):
    """FAF-Net on the plan's own encoder, from scratch; episodes from supervoxels, without labels."""

    network_settings = {"encoder": "plan"}
