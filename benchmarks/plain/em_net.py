"""Naive reference implementation of EM-Net, with the weights of an `EMNet`.

Maps are contiguous (B, C, *P), as in the formulas, and are converted to tokens and back for every norm. The two Mamba
calls of a layer run separately, the backward direction reads flipped copies, and the scan is a loop over time.
Convolutions, norms and activations are PyTorch's.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain.sasan import plain_convolutions
from nnunet_ext.blocks.channelwise import ChannelMLP
from nnunet_ext.blocks.mamba import Direction, Mamba
from nnunet_ext.networks import EMNet
from nnunet_ext.networks.em_net.csr_mamba import CSRMamba, ResidualBlock
from nnunet_ext.networks.em_net.efl import EFL
from nnunet_ext.networks.em_net.network import _SLOPE
from nnunet_ext.ops import selective_scan_reference


def plain_forward(network: EMNet, image: Tensor, scan: Callable[..., Tensor] = selective_scan_reference) -> Tensor:
    """Logits (B, K, *P) of a network without deep supervision."""
    x, skips = image, []
    for down, stage, skip in zip(
        network.encoder.downsampling, network.encoder.stages, network.encoder.skips, strict=True
    ):
        for module in down:
            x = _norm(module, x) if isinstance(module, nn.LayerNorm) else module(x)
        for layer in stage:
            x = plain_efl(layer, x) if isinstance(layer, EFL) else plain_csr_mamba(layer, x, scan)
        skips.append(_mlp(skip.mlp, _norm(skip.norm, x)))
    decoder, x = network.decoder, skips[-1]
    for level in reversed(range(1, len(decoder.stages))):
        x = decoder.upsampling[level](x) + skips[level - 1]
        for layer in decoder.stages[level]:
            x = plain_csr_mamba(layer, x, scan)
    x = decoder.upsampling[0](x) + _image_block(decoder.image, image)
    return decoder.seg_layers[0](plain_convolutions(decoder.stages[0], x))


def plain_efl(layer: EFL, x: Tensor) -> Tensor:
    """x + mlp(norm2(f)), f = irfftn(rfftn(norm1(x)) W); in the authors' layout, memory in the wrong order."""
    v = x.transpose(-1, -2) if layer.exchanged else x
    n = _norm(layer.norm1, v)
    if not layer.spatial:
        n = n.movedim(1, -1).contiguous().view(v.shape)
    axes = tuple(range(2, v.ndim))
    w = torch.complex(layer.weight[..., 0], layer.weight[..., 1])
    f = torch.fft.irfftn(torch.fft.rfftn(n, dim=axes, norm="ortho") * w, s=v.shape[2:], dim=axes, norm="ortho")
    v = v + _mlp(layer.mlp, _norm(layer.norm2, f))
    return v.transpose(-1, -2) if layer.exchanged else v


def plain_csr_mamba(layer: CSRMamba, x: Tensor, scan: Callable[..., Tensor]) -> Tensor:
    """y + project(dropout(block(y))), y = t + gamma (norm_m(mamba(n)) + norm_s(mamba(mlp(n)))), n = norm(t)."""
    t = x.flatten(2).transpose(1, 2) + layer.pos
    n = layer.norm(t)
    squeezed = _mlp(layer.mlp, n.transpose(1, 2).reshape(x.shape)).flatten(2).transpose(1, 2)
    m, s = n, squeezed
    if isinstance(layer.mamba, Mamba):
        m, s = (_mamba(layer.mamba, tokens, scan) for tokens in (n, squeezed))
    y = t + layer.gamma * (layer.norm_m(m) + layer.norm_s(s))
    y = y.transpose(1, 2).reshape(x.shape)
    return y + _conv_1x1(layer.project, layer.dropout(_residual(layer.block, y)))


def _mamba(mamba: Mamba, tokens: Tensor, scan: Callable[..., Tensor]) -> Tensor:
    x, z = mamba.in_proj(tokens).transpose(1, 2).chunk(2, 1)
    forwards, backwards = cast(list[Direction], list(mamba.directions))
    y = _direction(forwards, x, z, scan) + _direction(backwards, x.flip(-1), z.flip(-1), scan).flip(-1)
    return mamba.out_proj(y.transpose(1, 2))


def _direction(direction: Direction, x: Tensor, z: Tensor, scan: Callable[..., Tensor]) -> Tensor:
    conv, length = direction.conv1d, x.shape[-1]
    u = F.silu(F.conv1d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] - 1, groups=conv.groups)[..., :length])
    dt, b, c = direction.x_proj(u.transpose(1, 2)).transpose(1, 2).split(direction.split, 1)
    delta = F.linear(dt.transpose(1, 2), direction.dt_proj.weight).transpose(1, 2)
    a = -torch.exp(direction.A_log)
    return scan(u, delta, a, b, c, direction.D, z, delta_bias=direction.dt_proj.bias, delta_softplus=True)


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    y = F.leaky_relu(block.norm1(block.conv1(x)), _SLOPE)
    return F.leaky_relu(x + block.norm2(block.conv2(y)), _SLOPE)


def _image_block(block: nn.Module, image: Tensor) -> Tensor:
    y = plain_convolutions((block.conv1, block.conv2), image)
    return F.leaky_relu(y + plain_convolutions((block.shortcut,), image), _SLOPE)


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm over the channels of a map."""
    return F.layer_norm(x.movedim(1, -1), norm.normalized_shape, norm.weight, norm.bias, norm.eps).movedim(-1, 1)


def _mlp(mlp: ChannelMLP, x: Tensor) -> Tensor:
    return _conv_1x1(mlp.fc2, F.gelu(_conv_1x1(mlp.fc1, x)))


def _conv_1x1(linear: nn.Linear, x: Tensor) -> Tensor:
    convolve = {4: F.conv2d, 5: F.conv3d}[x.ndim]
    return convolve(x, linear.weight[(...,) + (None,) * (x.ndim - 2)], linear.bias)
