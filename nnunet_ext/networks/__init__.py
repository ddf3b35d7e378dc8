"""The networks, with nnU-Net's constructor vocabulary; usable without nnU-Net."""

from nnunet_ext.networks.em_net import EMNet
from nnunet_ext.networks.faf_net import FAFNet
from nnunet_ext.networks.lstm_sa import LSTMSA, SALSTM
from nnunet_ext.networks.mt_unet import MTUNet
from nnunet_ext.networks.registry import NETWORKS, NetworkInfo, network_info
from nnunet_ext.networks.sasan import SASAN
from nnunet_ext.networks.u_mamba import UMamba

__all__ = [
    "LSTMSA",
    "NETWORKS",
    "SALSTM",
    "SASAN",
    "EMNet",
    "FAFNet",
    "MTUNet",
    "NetworkInfo",
    "UMamba",
    "network_info",
]
