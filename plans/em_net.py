"""Plans for EM-Net."""

from nnunet_ext.networks import NETWORKS, EMNet
from nnunet_ext.planning.planner import TracedPlanner
from nnunet_ext.planning.preset import Preset


class EMNetPlanner(TracedPlanner):
    """EM-Net with the paper's widths; its stem and stages are derived from nnU-Net's poolings."""

    network = EMNet
    trainer_name = "EMNetTrainer"
    poolings = 2
    preset = Preset.of_paper(
        NETWORKS["em_net"].paper,
        "3d_fullres",
        spacing=(2.0, 1.5, 1.5),
        source="Chang et al., EM-Net: patch 128 x 128 x 128 at 1.5 x 1.5 x 2.0 mm",
    )
