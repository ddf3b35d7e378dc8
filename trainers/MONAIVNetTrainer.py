from typing import Any

from nnunet_ext.networks.topology import Topology
from nnunet_ext.training import MONAITrainer

_WIDTH = 16


class MONAIVNetTrainer(MONAITrainer):
    """V-Net, Milletari et al., 3DV 2016, by MONAI's `VNet`; for 1, 2, 4, 8 or 16 input channels.

    The class repeats the input to 16 channels for its first residual connection.
    """

    network_class = "monai.networks.nets.VNet"
    patch_multiple = 16

    @classmethod
    def network_arguments(cls, topology: Topology, input_channels: int, num_classes: int) -> dict[str, Any]:
        if _WIDTH % input_channels:
            raise ValueError(
                f"{cls.__name__}: {input_channels} input channels must divide {_WIDTH}, to which V-Net repeats them; "
                "use 1, 2, 4, 8 or 16 channels, or another trainer"
            )
        arguments = super().network_arguments(topology, input_channels, num_classes)
        return arguments | {"dropout_dim": topology.spatial_dims}
