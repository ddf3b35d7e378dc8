"""Import of the authors' SASAN weights."""

import re
from collections.abc import Mapping
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from nnunet_ext.networks.keys import check_keys, load_checked
from nnunet_ext.networks.sasan import SASAN
from nnunet_ext.networks.sasan.low_band import fold_mask

_AUTHORS_LEVELS = 5


def sasan_from_authors(state_dict: Mapping[str, Tensor], heads: int | None = None) -> SASAN:
    """SASAN with the authors' weights; sizes are inferred from the tensors.

    Their masks differ from ours in three ways, which this function compensates: they are in the shifted order of the
    spectrum; the authors' shift includes the channels, so mask c acts on feature channel (c + C/2) mod C; and they act
    on amplitudes that cropping has multiplied by prod(P) / prod(P_l).

    Args:
        state_dict: The authors' parameter names and values.
        heads: Heads of ASEM's attentions; None: the largest divisor of the axis length up to 16.

    Raises:
        ValueError: for missing or unexpected keys, tensors of the wrong shape, or a level with an odd number of
            channels or an odd size (for which the authors' shifts have no equivalent).
    """
    found = [int(m[1]) for k in state_dict if (m := re.match(r"down_(\d+)\.", k))]
    levels = max(found) + 1 if found else _AUTHORS_LEVELS
    spatial_dims = state_dict["final_conv.weight"].ndim - 2 if "final_conv.weight" in state_dict else 3
    names = _names(levels, spatial_dims**2)
    check_keys("SASAN", state_dict, [k for keys in names.values() for k in keys])

    masks = [state_dict[f"fine{level + 1}.mask"] for level in range(levels)]
    sizes = [tuple(m.shape[2:]) for m in masks]
    for level, size in enumerate(sizes):
        _refuse_odd(level, size)
    kernels = [tuple(state_dict[f"{_convs(level)}.conv_0.conv.weight"].shape[2:]) for level in range(levels)]
    network = SASAN(
        input_channels=state_dict["conv_0.conv_0.conv.weight"].shape[1],
        num_classes=state_dict["final_conv.weight"].shape[0],
        patch_size=sizes[0],
        n_stages=levels,
        features_per_stage=[m.shape[1] for m in masks],
        conv_op=nn.Conv3d if spatial_dims == 3 else nn.Conv2d,
        kernel_sizes=kernels,
        strides=[(1,) * spatial_dims]
        + [tuple(a // b for a, b in zip(above, below, strict=True)) for above, below in pairwise(sizes)],
        decoder_features=state_dict["final_conv.weight"].shape[1],
        heads=heads,
    )
    weights = {}
    for ours, theirs in names.items():
        tensors = [state_dict[k] for k in theirs]
        weights[ours] = (
            _mask(tensors[0], sizes[0])
            if ours.endswith(".mask")
            else torch.cat(tensors)
            if len(tensors) > 1
            else tensors[0]
        )
    load_checked("SASAN", network, weights)
    return network


def _convs(level: int) -> str:
    return "conv_0" if level == 0 else f"down_{level}.convs"


def _names(levels: int, attentions: int) -> dict[str, list[str]]:
    """Maps our parameter name to the authors' names, whose tensors are concatenated."""
    names: dict[str, list[str]] = {}

    def add(ours: str, theirs: str, *kinds: str) -> None:
        names.update({f"{ours}.{kind}": [f"{theirs}.{kind}"] for kind in kinds})

    def add_two_convs(ours: str, theirs: str) -> None:
        for i in range(2):
            add(f"{ours}.{i}.conv", f"{theirs}.conv_{i}.conv", "weight", "bias")
            for kind in ("weight", "bias"):
                names[f"{ours}.{i}.norm_act.{kind}"] = [f"{theirs}.conv_{i}.adn.N.{kind}"]

    for level in range(levels):
        add_two_convs(f"encoder.stages.{level}", _convs(level))
        add(f"encoder.fine.{level}", f"fine{level + 1}", "mask", "rate")
    for level in range(levels - 1):
        add(f"decoder.upsampling.{level}", f"upcat_{level + 1}.upsample.deconv", "weight", "bias")
        add_two_convs(f"decoder.stages.{level}", f"upcat_{level + 1}.convs")
    add("decoder.seg_layers.0", "final_conv", "weight", "bias")
    for i in range(attentions):
        theirs = f"asem.axial_attention.axial_attentions.{i}.fn"
        names[f"decoder.asem.attentions.{i}.qkv.weight"] = [f"{theirs}.to_q.weight", f"{theirs}.to_kv.weight"]
        add(f"decoder.asem.attentions.{i}.out", f"{theirs}.to_out", "weight", "bias")
    add("decoder.asem.seg_layers.gate", "asem.spatial_attention.conv", "weight", "bias")
    return names


def _refuse_odd(level: int, size: tuple[int, ...]) -> None:
    if any(length % 2 for length in size):
        raise ValueError(
            f"the mask of level {level} has the odd size {' x '.join(map(str, size))}: these weights cannot be "
            "imported exactly. The authors' code shifts spectra of odd size without undoing it, so that no mask of "
            "this network gives the same; their published patch of 96 has even levels only"
        )


def _mask(theirs: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    channels, size = theirs.shape[1], theirs.shape[2:]
    if channels % 2:
        raise ValueError(f"a mask with {channels} channels cannot be imported: the authors' shift needs an even number")
    mask = torch.fft.ifftshift(theirs, dim=tuple(range(2, theirs.ndim))).roll(channels // 2, 1)
    return fold_mask(mask) * (prod(patch_size) / prod(size))
