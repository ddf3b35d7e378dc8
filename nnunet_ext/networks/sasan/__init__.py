"""SASAN: the Spectrum-Axial Spatial Approach Network."""

from nnunet_ext.networks.sasan.network import SASAN

__all__ = ["SASAN"]
