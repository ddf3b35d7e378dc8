"""Networks of timm by name, and the part of one that gives FAF-Net its feature levels."""

from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from torch import nn

from nnunet_ext.networks.faf_net.positions import STRIDE
from nnunet_ext.utils.torch_private import unset_fake_temporarily

PREFIX = "timm:"
_DEEPEST = 16
_SETTINGS: dict[str, Any] = {"dynamic_img_size": True, "strict_img_size": False, "output_stride": 8}
"""Arguments of timm's networks for images of any size, and for the smallest stride that they offer by dilation."""


def pruned_network(name: str) -> tuple[Any, list[int], bool]:
    """The network without what follows its last level, the levels, and whether they all have one stride.

    It takes images of any size and is dilated, where timm offers that.
    """
    import timm

    whole = whole_network(name)
    strides = [info["reduction"] for info in whole.feature_info]
    flat = len(set(strides)) == 1
    usable = [i for i, stride in enumerate(strides) if STRIDE <= stride <= _DEEPEST]
    if not usable:
        raise ValueError(
            f"`encoder`='{PREFIX}{name}' has maps of strides {sorted(set(strides))} only; one from {STRIDE} to "
            f"{_DEEPEST} is needed"
        )
    if flat:
        depth = len(usable)
        levels = sorted({-(-depth * k // 4) - 1 for k in (2, 3, 4)})
    else:
        levels = [i for i in usable if i + 1 == len(strides) or strides[i + 1] > strides[i]]
    parameters = signature(type(whole)).parameters
    settings = {key: value for key, value in _SETTINGS.items() if key in parameters}
    model: Any = timm.create_model(name, pretrained=False, **settings)
    model.prune_intermediate_layers(levels, prune_norm=not flat, prune_head=True)
    if isinstance(getattr(model, "head", None), nn.Module):
        model.head = nn.Identity()  # pruning leaves ConvNeXt's norm in it
    return model, levels, flat


def whole_network(name: str) -> Any:
    """The whole network, as timm builds it, without values where possible.

    Raises:
        ValueError: as `TimmBackbone`.
    """
    import timm

    known, _, _ = name.partition(".")
    if not timm.is_model(known):
        similar = get_close_matches(known, timm.list_models(), n=5, cutoff=0.4)
        raise ValueError(
            f"unknown `encoder` '{PREFIX}{name}'; timm {timm.__version__} has similar names: {', '.join(similar)}"
            if similar
            else f"unknown `encoder` '{PREFIX}{name}'; timm.list_models() lists the names"
        )
    try:
        with unset_fake_temporarily(), torch.device("meta"):  # planning builds networks of fake tensors
            model = timm.create_model(name, pretrained=False)
    except NotImplementedError:  # RegNet needs values
        model = timm.create_model(name, pretrained=False)
    except RuntimeError as error:  # an unknown tag; timm lists the known ones
        raise ValueError(f"unknown `encoder` '{PREFIX}{name}': {error}") from error
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "feature_info"):
        raise ValueError(f"`encoder`='{PREFIX}{name}': timm's {type(model).__name__} does not offer its feature maps")
    return model
