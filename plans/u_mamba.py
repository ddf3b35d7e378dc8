"""Plans for U-Mamba."""

from nnunet_ext.networks import UMamba
from nnunet_ext.planning.planner import TracedPlanner


class UMambaPlanner(TracedPlanner):
    """U-Mamba on nnU-Net's stages; there is no preset, because the paper trains on nnU-Net's own plans."""

    network = UMamba
    trainer_name = "UMambaEncTrainer"
    poolings = 1
