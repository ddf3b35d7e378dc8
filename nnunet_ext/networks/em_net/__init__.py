"""EM-Net: efficient channel and frequency learning with Mamba."""

from nnunet_ext.networks.em_net.network import LAYERS_PER_STAGE, VARIANTS, EMNet

__all__ = ["LAYERS_PER_STAGE", "VARIANTS", "EMNet"]
