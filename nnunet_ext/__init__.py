"""Published segmentation networks for nnU-Net v2, as a plugin: networks, losses, trainers, tools.

Importing this package is cheap; ``nnunet_ext.networks``, ``nnunet_ext.losses`` and so on import torch.
"""

__version__ = "0.1.0"
