"""Naive reference implementation of U-Mamba in PyTorch's own functions, with the weights of ours."""

import torch
import torch.nn.functional as F

from nnunet_ext.ops import selective_scan_reference


def plain_forward(network, x):
    """All logits, full resolution first."""
    encoder, decoder = network.encoder, network.decoder
    for block in encoder.stem:
        x = residual(block, x)
    skips = []
    for s, stage in enumerate(encoder.stages):
        for block in stage:
            x = residual(block, x)
        if str(s) in encoder.mamba_layers:
            x = mamba(encoder.mamba_layers[str(s)], x)
        skips.append(x)
    outputs = []
    for level in reversed(range(len(skips) - 1)):
        for axis, step in enumerate(decoder.strides[level], start=2):
            x = x.repeat_interleave(step, axis)
        x = convolved(decoder.projections[level], x)
        if level > 0 or x.ndim == 5:
            x = torch.cat((x, skips[level]), 1)
        for block in decoder.stages[level]:
            x = residual(block, x)
        outputs.insert(0, convolved(decoder.seg_layers[level], x))
    return outputs


def residual(block, x):
    stride = [step.step or 1 for step in block.kept[2:]] or [1] * (x.ndim - 2)
    y = F.leaky_relu(normalised(block.conv1, convolved(block.conv1.conv, x, stride)), 0.01)
    y = normalised(block.conv2, convolved(block.conv2.conv, y))
    return F.leaky_relu(y + (x if block.shortcut is None else convolved(block.shortcut, x, stride)), 0.01)


def convolved(conv, x, stride=1):
    """A strided convolution as a full one, some of whose voxels the strides keep."""
    padding = [k // 2 for k in conv.kernel_size]
    y = (F.conv2d if x.ndim == 4 else F.conv3d)(x, conv.weight, conv.bias, padding=padding)
    steps = [stride] * (x.ndim - 2) if isinstance(stride, int) else stride
    return y[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]


def normalised(block, x):
    return F.instance_norm(x, weight=block.norm_act.weight, bias=block.norm_act.bias, eps=1e-5)


def mamba(layer, x):
    """With the voxels as tokens, or with the channels where the norm is as wide as there are voxels."""
    by_channel = layer.channel_tokens
    tokens = x.flatten(2) if by_channel else x.flatten(2).transpose(1, 2)
    tokens = F.layer_norm(tokens, tokens.shape[2:], layer.norm.weight, layer.norm.bias)
    (direction,) = layer.mamba.directions
    u, z = (tokens @ layer.mamba.in_proj.weight.T).transpose(1, 2).chunk(2, 1)
    u = F.silu(direction.conv1d(F.pad(u, (3, 0))))
    delta, b, c = (u.transpose(1, 2) @ direction.x_proj.weight.T).split(direction.split, -1)
    delta = F.softplus(direction.dt_proj(delta)).transpose(1, 2)
    rates = -torch.exp(direction.A_log)
    y = selective_scan_reference(u, delta, rates, b.transpose(1, 2), c.transpose(1, 2), direction.D, z)
    y = y.transpose(1, 2) @ layer.mamba.out_proj.weight.T
    return (y if by_channel else y.transpose(1, 2)).reshape(x.shape)
