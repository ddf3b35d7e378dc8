"""Plans for trainers that use none of our networks."""

from nnunet_ext.planning.planner import TracedPlanner


class StockPlanner(TracedPlanner):
    """nnU-Net's U-Net, or any network that a trainer builds from such a plan, planned by tracing its training."""

    learns_patches = True
