"""Weights for another plan: what a network's classes declare, and rules for everything else."""

from nnunet_ext.weights.adapting.adapt import adapt_weights
from nnunet_ext.weights.adapting.report import Row

__all__ = ["Row", "adapt_weights"]
