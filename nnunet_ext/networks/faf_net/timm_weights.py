"""Pretrained weights for encoders of timm: from its hub or from a file."""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from nnunet_ext.networks.faf_net.timm_models import PREFIX, whole_network
from nnunet_ext.networks.keys import check_keys, load_checked

HUB = "timm"
"""The name of the weights that timm itself downloads."""


def load_timm_weights(name: str, model: nn.Module, weights: str | Mapping[str, Tensor]) -> None:
    """Loads weights of a whole network into a part of it.

    A state dict may be in any format that timm converts itself, such as that of DINOv2's authors.

    Args:
        name: The network's name in timm.
        model: The network without some of its layers.
        weights: ``"timm"``: timm's own, downloaded once; or a state dict.

    Raises:
        ValueError: for missing or unexpected tensors or tensors of other shapes, or if timm has no weights for it.
        RuntimeError: if they cannot be downloaded; the message says which file to fetch, and where to put it.
    """
    whole = whole_network(name)
    if isinstance(weights, str):
        state = _downloaded(name, whole.pretrained_cfg)
    else:
        # The module of the network has it; timm applies it to files that it downloads.
        convert = getattr(sys.modules[type(whole).__module__], "checkpoint_filter_fn", None)
        state = dict(weights) if convert is None else convert(dict(weights), whole)
    wanted = set(model.state_dict())
    unused = set(whole.state_dict()) - wanted
    state = {key: value for key, value in state.items() if key not in unused}
    check_keys(name, state, wanted, whose="timm's")
    load_checked(name, model, state, whose="timm's")


def _downloaded(name: str, source: Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of timm's weights, from its cache or its hub.

    Args:
        name: Name of the network.
        source: timm's `pretrained_cfg` of it.
    """
    import timm

    where = _address(source)
    if where is None:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}*")
        known = f"; it has weights for: {', '.join(tags)}" if tags else ""
        raise ValueError(f"timm has no weights for {name}{known}; give a file, or weights=None to start from scratch")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    # The hub's client and urllib raise errors of many types without a network.
    except Exception as error:
        raise RuntimeError(
            f"the weights of {PREFIX}{name} cannot be downloaded ({error}). Fetch {where} elsewhere and give the file "
            "itself as the weights, or put it into the hub's cache (HF_HOME), or start from scratch with weights=None"
        ) from error


def _address(source: Mapping[str, Any]) -> str | None:
    """URL of the file of weights."""
    if source.get("hf_hub_id"):
        file = source.get("hf_hub_filename") or "model.safetensors"
        return f"https://huggingface.co/{source['hf_hub_id']}/resolve/main/{file}"
    return source.get("url") or None
