"""FAF-Net: few-shot segmentation with adaptive frequency filtering."""

from nnunet_ext.networks.faf_net.network import FAFNet

__all__ = ["FAFNet"]
