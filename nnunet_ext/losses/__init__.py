"""Losses; they know nothing of nnU-Net, but take its targets as they come."""

from nnunet_ext.losses.self_updating import SelfUpdatingLoss, output_weights

__all__ = ["SelfUpdatingLoss", "output_weights"]
