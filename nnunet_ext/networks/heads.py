"""Deep-supervision heads: `seg_layers` of a decoder, full resolution first."""

from torch import nn


def check_heads(seg_layers: nn.ModuleList, expected: int) -> None:
    """Raises ValueError if deep supervision is requested from a decoder that was built without its lower heads."""
    if len(seg_layers) < expected:
        raise ValueError("this network was built with `deep_supervision=False`: it has no lower heads to return")


def drop_unused_heads(module: nn.Module, state_dict: dict, prefix: str, *_: object) -> None:
    """Pre-load hook: lets weights trained with deep supervision load into a decoder that has only head 0."""
    kept = len(module.get_submodule("seg_layers"))  # type: ignore[arg-type]
    start = f"{prefix}seg_layers."
    for key in [k for k in state_dict if k.startswith(start)]:
        if int(key[len(start) :].split(".")[0]) >= kept:
            del state_dict[key]
