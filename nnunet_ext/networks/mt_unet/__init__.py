"""MT-UNet: the mixed transformer U-Net that LSTM-SA's paper uses as backbone."""

from nnunet_ext.networks.mt_unet.network import EA_MODULES, LEVELS, STEM_LEVELS, MTUNet

__all__ = ["EA_MODULES", "LEVELS", "STEM_LEVELS", "MTUNet"]
