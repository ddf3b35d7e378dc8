"""Import of the authors' SALSTM and LSTMSA weights.

Exact for every size, batch and width, given the attention size, with a backbone without statistics across slices: with
MT-UNet in evaluation, on square slices. In training, the authors' code takes the batch norms' statistics of each of the
three slices by itself, this network those of all slices at once.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from nnunet_ext.networks.keys import check_keys, load_checked
from nnunet_ext.networks.lstm_sa import LSTMSA, SALSTM
from nnunet_ext.networks.mt_unet.authors_weights import mt_unet_from_authors

_BACKBONE = "encoder."
_ATTENTION_SIZE = 88 * 88
"""Attention size of the published checkpoints, for images of 224 x 224."""
_PASSES = ("forward_net", "reverse_net")
_GATED = {"query": "q_matrix", "key": "k_matrix", "value": "v_matrix"}

_Network = TypeVar("_Network", SALSTM, LSTMSA)


def salstm_from_authors(
    state_dict: Mapping[str, Tensor],
    backbone: nn.Module | None = None,
    attention_size: int = _ATTENTION_SIZE,
    patch_size: int | Sequence[int] | None = None,
) -> SALSTM:
    """SALSTM with the authors' weights.

    Args:
        state_dict: The authors' parameter names and values.
        backbone: A module whose weights are stored under ``encoder.`` and that returns one map (N, C, H, W); None: the
            authors' MT-UNet. Its weights are overwritten.
        attention_size: s in the attention's scale, which cannot be inferred from the tensors.
        patch_size: Size of a slice in pixels; None: inferred from MT-UNet, or any size for another backbone.

    Raises:
        ValueError: for missing or unexpected keys, or tensors of the wrong shape.
    """
    return _from_authors(SALSTM, state_dict, backbone, attention_size, patch_size)


def lstmsa_from_authors(
    state_dict: Mapping[str, Tensor],
    backbone: nn.Module | None = None,
    attention_size: int = _ATTENTION_SIZE,
    patch_size: int | Sequence[int] | None = None,
) -> LSTMSA:
    """LSTMSA with the authors' weights; arguments and errors are those of `salstm_from_authors`."""
    return _from_authors(LSTMSA, state_dict, backbone, attention_size, patch_size)


def _from_authors(
    network_class: type[_Network],
    state_dict: Mapping[str, Tensor],
    backbone: nn.Module | None,
    attention_size: int,
    patch_size: int | Sequence[int] | None,
) -> _Network:
    name = network_class.__name__
    of_backbone = {k.removeprefix(_BACKBONE): v for k, v in state_dict.items() if k.startswith(_BACKBONE)}
    names = _head_names(network_class.gated)
    head = {k: v for k, v in state_dict.items() if not k.startswith(_BACKBONE)}
    check_keys(name, head, names.values())
    if backbone is None:
        backbone = mt_unet_from_authors(of_backbone, patch_size)
        patch_size = backbone.patch_size
    else:
        check_keys(f"{name} backbone", of_backbone, backbone.state_dict())
        load_checked(f"{name} backbone", backbone, of_backbone)
    classes, channels = head["lstmlayer.conv.weight"].shape[:2]
    network = network_class(
        input_channels=getattr(backbone, "input_channels", 1),
        num_classes=classes,
        patch_size=patch_size,
        features_per_stage=channels // 2,
        backbone=backbone,
        attention_size=attention_size,
    )
    kept = {k: v for k, v in network.state_dict().items() if k.startswith("backbone.")}
    load_checked(name, network, {ours: head[theirs] for ours, theirs in names.items()} | kept)
    return network


def _head_names(gated: bool) -> dict[str, str]:
    """Maps our parameter names to the authors'."""
    names = {"decoder.seg_layers.0": "lstmlayer.conv"}
    for i, direction in enumerate(_PASSES):
        names[f"decoder.lstms.{i}.conv"] = f"lstmlayer.{direction}.cell0.conv"
        if gated:
            for ours, theirs in _GATED.items():
                names[f"decoder.attentions.{i}.{ours}"] = f"lstmlayer.{direction}.attention.{theirs}"
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in names.items() for kind in ("weight", "bias")}
