"""Stages of nnU-Net's own decoders, counted from the finest."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

_PACKAGE = "dynamic_network_architectures."
_STAGE = re.compile(r"decoder\.(?:stages|transpconvs|seg_layers)\.(\d+)\.")


def renumbered(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The weights, with the numbers that their decoder stages have in a network with more or fewer stages.

    nnU-Net's decoders number their stages from the lowest up, so that the finest has another number on another plan.
    Our networks, and all encoders, begin with the finest. Stages that the new network lacks are dropped.
    """
    decoder = getattr(network, "decoder", None)
    found = [int(match[1]) for name in weights if (match := _STAGE.match(name))]
    if not found or not type(decoder).__module__.startswith(_PACKAGE):
        return dict(weights)
    more = len(getattr(decoder, "stages", ())) - 1 - max(found)

    def new_name(name: str) -> str | None:
        match = _STAGE.match(name)
        if match is None:
            return name
        number = int(match[1]) + more
        return None if number < 0 else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"

    return {new: value for name, value in weights.items() if (new := new_name(name)) is not None}
