"""Operators; they know nothing of networks."""

from nnunet_ext.ops.causal_conv1d import causal_conv1d, causal_conv1d_reference
from nnunet_ext.ops.reference import selective_scan_reference
from nnunet_ext.ops.selective_scan import describe_backend, selective_scan

__all__ = [
    "causal_conv1d",
    "causal_conv1d_reference",
    "describe_backend",
    "selective_scan",
    "selective_scan_reference",
]
