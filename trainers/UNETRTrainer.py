from typing import Any

from nnunet_ext.networks.topology import Topology
from nnunet_ext.training import AdamWTrainer, MONAITrainer


class UNETRTrainer(AdamWTrainer, MONAITrainer):
    """UNETR, Hatamizadeh et al., WACV 2022, by MONAI's `UNETR`; its positions are tied to the plan's patch.

    Training: AdamW with the paper's rate of 1e-4; warm-up and cosine, and the weight decay, are not from the paper.
    """

    network_class = "monai.networks.nets.UNETR"
    patch_multiple = 16
    never_used = ("norm_cross_attn",)
    learning_rate = 1e-4

    @classmethod
    def network_arguments(cls, topology: Topology, input_channels: int, num_classes: int) -> dict[str, Any]:
        arguments = super().network_arguments(topology, input_channels, num_classes)
        return arguments | {"img_size": topology.patch_size}
