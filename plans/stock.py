"""Plans for trainers without a network of ours."""

from nnunet_ext.planning.planner import TracedPlanner


class StockPlanner(TracedPlanner):
    """nnU-Net's U-Net, or whatever network a trainer builds of such a plan, by the trace of its training."""
