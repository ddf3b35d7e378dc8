"""Naive reference implementation of SASAN, with the weights of a `SASAN`.

Every feature map is transformed, mixed in the spectrum and transformed back, and attention matrices are computed and
kept. Convolutions, norms and activations are PyTorch's, on contiguous tensors.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.blocks.conv import ConvNormAct
from nnunet_ext.networks import SASAN
from nnunet_ext.networks.sasan.asem import ASEM
from nnunet_ext.networks.sasan.axial_attention import attend_reference
from nnunet_ext.networks.sasan.low_band import unfold_mask


def plain_masks(network: SASAN) -> list[Tensor]:
    """The network's masks as in the formulas: in the shifted order, including the factor of the amplitudes."""
    masks = []
    for fine in network.encoder.fine:
        axes = tuple(range(2, fine.mask.ndim))
        factor = fine.mask.shape[2:].numel() / network.encoder.fine[0].mask.shape[2:].numel()
        masks.append(torch.fft.fftshift(unfold_mask(fine.mask), dim=axes) * factor)
    return masks


def leaf_masks(network: SASAN) -> list[Tensor]:
    """`plain_masks` as parameters that replace the network's own, so that only they get gradients."""
    masks = [mask.detach().requires_grad_() for mask in plain_masks(network)]
    for fine in network.encoder.fine:
        del fine.mask
    return masks


def plain_forward(network: SASAN, image: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Logits (B, K, *P) of a network with one input channel, without deep supervision; masks from `plain_masks`."""
    axes = tuple(range(2, image.ndim))
    spectrum = torch.fft.fftshift(torch.fft.fftn(image, dim=axes), dim=axes)
    encoder, decoder = network.encoder, network.decoder
    x, skips = image, []
    for pool, stage, fine, mask in zip(encoder.pools, encoder.stages, encoder.fine, masks, strict=True):
        x = plain_convolutions(stage, pool(x))
        x = _fine(fine.rate, mask, x, spectrum) * x
        skips.append(x)
    for level in reversed(range(len(decoder.stages))):
        x = torch.cat((skips[level], decoder.upsampling[level](x)), 1)
        x = plain_convolutions(decoder.stages[level], x)
    return plain_asem(decoder.asem, decoder.seg_layers[0](x))


def plain_convolutions(blocks: Iterable[ConvNormAct], x: Tensor) -> Tensor:
    """Applies convolution, instance norm and leaky ReLU of every block."""
    for block in blocks:
        norm = block.norm_act
        x = F.instance_norm(block.conv(x), weight=norm.weight, bias=norm.bias, eps=norm.eps)
        x = F.leaky_relu(x, norm.slope)
    return x


def _fine(rate: Tensor, mask: Tensor, x: Tensor, spectrum: Tensor) -> Tensor:
    axes = tuple(range(2, x.ndim))
    cropped = spectrum
    for axis, size in zip(axes, x.shape[2:], strict=True):
        cropped = cropped.narrow(axis, cropped.shape[axis] // 2 - size // 2, size)
    own = torch.fft.fftshift(torch.fft.fftn(x, dim=axes), dim=axes)
    mixed = rate * own + (1 - rate) * mask * cropped
    return torch.fft.ifftn(torch.fft.ifftshift(mixed, dim=axes), dim=axes).real


def plain_asem(asem: ASEM, z: Tensor) -> Tensor:
    """A(z) * (z * sigmoid(conv(z))), with one attention per pair of embedding axis (outer) and sequence axis."""
    attentions = iter(asem.attentions)
    axial = torch.zeros_like(z)
    for embedding in range(2, z.ndim):
        for sequence in [1, *(axis for axis in range(2, z.ndim) if axis != embedding)]:
            a = next(attentions)
            tokens = z.movedim((sequence, embedding), (-2, -1))
            flat = tokens.reshape(-1, *tokens.shape[-2:])
            mixed = attend_reference(flat, a.heads, a.qkv.weight, a.out.weight, a.out.bias)
            axial = axial + mixed.view(tokens.shape).movedim((-2, -1), (sequence, embedding))
    return asem.scale * axial * (z * torch.sigmoid(asem.seg_layers["gate"](z)))
