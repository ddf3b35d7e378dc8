"""Losses; they know nothing of nnU-Net, but take its targets as they come."""

from nnunet_ext.losses.self_updating import SelfUpdatingLoss

__all__ = ["SelfUpdatingLoss"]
