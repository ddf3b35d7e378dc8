"""Naive reference implementation of SALSTM and LSTMSA: three encodings and four whole convolutions per slice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.networks.lstm_sa import LSTMSA, SALSTM
from nnunet_ext.networks.lstm_sa.conv_lstm import SliceLSTM
from nnunet_ext.networks.lstm_sa.state_attention import StateAttention


def plain_volume(network: SALSTM | LSTMSA, x: Tensor) -> Tensor:
    """Logits (B, K, D, H, W) of a volume (B, M, D, H, W), slice by slice, with repeated border slices."""
    slices = x.unbind(2)
    last = len(slices) - 1
    return torch.stack(
        [plain_slice(network, slices[max(0, k - 1)], slices[k], slices[min(last, k + 1)]) for k in range(last + 1)], 2
    )


def plain_slice(network: SALSTM | LSTMSA, previous: Tensor, current: Tensor, following: Tensor) -> Tensor:
    """Logits (B, K, H, W) of a slice from itself and its neighbours."""
    decoder = network.decoder
    f_previous, f_current, f_following = (_encode(network, x) for x in (previous, current, following))
    directions = [
        _attend(attention, *_two_steps(lstm, neighbour, f_current))
        for lstm, attention, neighbour in zip(decoder.lstms, decoder.attentions, (f_previous, f_following), strict=True)
    ]
    return decoder.seg_layers[0](torch.cat(directions, 1))


def _encode(network: SALSTM | LSTMSA, x: Tensor) -> Tensor:
    maps = network.backbone(x)
    return maps[0] if isinstance(maps, list) else maps


def _two_steps(lstm: SliceLSTM, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
    c = h = torch.zeros_like(first)
    for x in (first, second):
        i, f, o, g = lstm.conv(torch.cat((x, h), 1)).chunk(4, 1)
        i, f, o, g = i.sigmoid(), f.sigmoid(), o.sigmoid(), g.tanh()
        c = f * c + i * g
        h = o * c.tanh()
    return c, f, g, h


def _attend(attention: StateAttention, c: Tensor, f: Tensor, g: Tensor, h: Tensor) -> Tensor:
    q, k, v = ((c + f) / 2).flatten(2), ((g + h) / 2).flatten(2), h.flatten(2)
    if attention.gated:
        tokens = v.transpose(1, 2)
        layers = (attention.query, attention.key, attention.value)
        q, k, v = (
            gate * F.linear(tokens, layer.weight, layer.bias).transpose(1, 2)
            for gate, layer in zip((q, k, v), layers, strict=True)
        )
    return (torch.softmax(q * attention.scale @ k.transpose(1, 2), -1) @ v).view(h.shape)
