"""The networks, with nnU-Net's constructor vocabulary; usable without nnU-Net."""

from nnunet_ext.networks.em_net import EMNet
from nnunet_ext.networks.registry import NETWORKS, NetworkInfo, network_info
from nnunet_ext.networks.sasan import SASAN

__all__ = ["NETWORKS", "SASAN", "EMNet", "NetworkInfo", "network_info"]
