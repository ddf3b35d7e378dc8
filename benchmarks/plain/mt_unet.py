"""Naive reference of MT-UNet: a loop over positions in the Gaussian axial attention; everything else is ours."""

from unittest.mock import patch

import torch
from torch import Tensor, nn

from nnunet_ext.networks.mt_unet import gaussian_attention


def plain_forward(network: nn.Module, image: Tensor) -> Tensor:
    """Logits of an `MTUNet`, whose Gaussian axial attention visits one position at a time."""

    def loop(q: Tensor, k: Tensor, v: Tensor, shift: Tensor) -> Tensor:
        return gaussian_attention.gaussian_attention_reference(q, k, v, shift, torch.zeros(1))

    with patch.object(gaussian_attention, "gaussian_attention", loop):
        return network(image)
