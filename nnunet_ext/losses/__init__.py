"""Losses; they know nothing of nnU-Net, but accept its targets directly."""

from nnunet_ext.losses.self_updating import SelfUpdatingLoss, output_weights

__all__ = ["SelfUpdatingLoss", "output_weights"]
