"""Plans for SASAN."""

from nnunet_ext.networks import NETWORKS, SASAN
from nnunet_ext.planning.planner import TracedPlanner
from nnunet_ext.planning.preset import Preset


class SASANPlanner(TracedPlanner):
    """SASAN on nnU-Net's stages; its masks grow with the patch, which the trace includes."""

    network = SASAN
    trainer_name = "SASANTrainer"
    poolings = 1
    preset = Preset.of_paper(
        NETWORKS["sasan"].paper,
        "3d_fullres",
        source="Huang et al., SASAN: patch 96 x 96 x 96, features 32 to 512",
    )
