"""Plans for networks of any other module: a user's own, or a library's."""

from nnunet_ext.planning.planner import TracedPlanner


class OwnNetworkPlanner(TracedPlanner):
    """The trainer's `network_class` on nnU-Net's stages, by the trainer's `patch_multiple` and `poolings`.

    Patches that the network refuses are enlarged to multiples of powers of two until it takes them.
    """

    learns_patches = True
