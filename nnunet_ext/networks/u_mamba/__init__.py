"""U-Mamba: a residual U-Net with Mamba at its bottleneck or in its encoder."""

from nnunet_ext.networks.u_mamba.network import VARIANTS, UMamba

__all__ = ["VARIANTS", "UMamba"]
