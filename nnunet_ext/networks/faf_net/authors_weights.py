"""Import of the authors' FAF-Net weights.

Exact for every number of classes and images, with batch norms in evaluation, where the feature grid is that of the
filters; the authors' code takes no other. At other sizes the filters are resized, which is this network's definition.
The authors' inverse transform of a spectrum that is not Hermitian depends on the device; this is its result on a CPU.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from math import isqrt

from torch import Tensor, nn

from nnunet_ext.networks.faf_net import FAFNet
from nnunet_ext.networks.faf_net.head import FAFHead
from nnunet_ext.networks.keys import check_keys, load_checked

_RESNETS = {2: "resnet18", 6: "resnet50", 23: "resnet101"}
"""ResNets by the number of blocks in layer3."""
_IGNORED = ".num_batches_tracked"
"""A counter that batch norm does not use at its default momentum."""
_FIRST = "layer1.0.conv1.weight"
_DEAD = ("layer4.", "fc.")
_DEAD_WIDTHS = (2048, 1000)
"""Output channels of layer4 and fc; no output of the network depends on the layers that read them."""
_ICM = "cross_att."


def faf_net_from_authors(
    state_dict: Mapping[str, Tensor],
    patch_size: int | Iterable[int] | None = None,
    input_channels: int = 1,
    num_classes: int = 2,
    filter_grid: int | Iterable[int] | None = None,
) -> FAFNet | FAFHead:
    """FAF-Net with the authors' weights; sizes are inferred from the tensors.

    The encoder is recognised by torchvision's names, under any prefix, and the convolutions after it by their shapes.
    Of the two convolutions that read layer3, the threshold's is the one whose name most resembles that of the
    convolution to one channel. layer4, fc and the layers that read them are ignored.

    Args:
        state_dict: The authors' parameter names and values.
        patch_size: Image size (H, W); None: the size whose features at stride 4 have the filters' grid.
        input_channels: Channels of the images.
        num_classes: Number of outputs, including background.
        filter_grid: (h, w) of the filters; None: inferred from the tensors.

    Returns:
        A 2D `FAFNet`, which needs a support before it predicts, or its `FAFHead` if the weights have no encoder.

    Raises:
        ValueError: for missing or unexpected keys, tensors of the wrong shape, or filters whose grid is ambiguous.
    """
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith(_IGNORED)}
    prefixes = [k.removesuffix(_FIRST) for k in state_dict if k.endswith(_FIRST)]
    names = {f"icm.{ours}": f"{_ICM}{theirs}" for ours, theirs in _icm_names().items()}
    head = {k: v for k, v in state_dict.items() if k.startswith(_ICM)}
    check_keys("FAF-Net", head if prefixes else state_dict, names.values())
    channels, heads = head[f"{_ICM}fc_q.weight"].shape[-1], head[f"{_ICM}amp_res3.1.weight"].shape[0]
    grid = _grid(head[f"{_ICM}down1.weight"], filter_grid)
    network: FAFNet | FAFHead
    if prefixes:
        backbone, rest = _split(state_dict, prefixes[0])
        blocks = {m[1] for k in backbone if (m := re.match(r"layer3\.(\d+)\.", k))}
        if patch_size is None:
            patch_size = [4 * (size - 1) + 1 for size in grid]
        network = FAFNet(
            input_channels=input_channels,
            num_classes=num_classes,
            patch_size=patch_size if isinstance(patch_size, int) else tuple(patch_size),
            n_stages=2,
            features_per_stage=1,
            conv_op=nn.Conv2d,
            kernel_sizes=1,
            strides=1,
            encoder=_RESNETS.get(len(blocks), "resnet101"),
            filter_grid=grid,
            feature_channels=channels,
            icm_heads=heads,
        )
        ours = [k for k in network.encoder.backbone.state_dict() if not k.endswith(_IGNORED)]
        check_keys("FAF-Net", backbone, ours)
        names = {f"decoder.{k}": v for k, v in names.items()}
        names |= {f"encoder.backbone.{k}": f"{prefixes[0]}{k}" for k in ours}
        names |= _names_after_the_backbone(rest, channels, network.encoder.backbone.width)
    else:
        network = FAFHead(num_classes, channels, heads, grid)
    kept = {k: v for k, v in network.state_dict().items() if k not in names}
    load_checked("FAF-Net", network, kept | {ours: state_dict[theirs] for ours, theirs in names.items()})
    return network


def _icm_names() -> dict[str, str]:
    """Maps the names of ICM's tensors to the authors' under ``cross_att.``."""
    names = {f"fc_{i}.{kind}": f"fc_{i}.{kind}" for i in "qkvo" for kind in ("weight", "bias")}
    for ours, theirs, linear in (("amplitude", "amp", "down1"), ("phase", "pha", "down2")):
        for i, place in ((1, 0), (2, 1), (3, 1)):
            names[f"aff.{ours}.res{i}.weight"] = f"{theirs}_res{i}.{place}.weight"
        names |= {f"aff.{ours}.down.{kind}": f"{linear}.{kind}" for kind in ("weight", "bias")}
    return names


def _grid(weight: Tensor, given: int | Iterable[int] | None) -> tuple[int, int]:
    """(h, w) of a linear layer hw -> h (w // 2 + 1)."""
    spectrum, positions = weight.shape
    if given is not None:
        sizes = (given, given) if isinstance(given, int) else tuple(given)
        if len(sizes) != 2:
            raise ValueError(f"`filter_grid`={sizes} must be two sizes")
        return sizes
    side = isqrt(positions)
    if (side * side, side * (side // 2 + 1)) != (positions, spectrum):
        raise ValueError(f"filters of {positions} positions have no square grid: `filter_grid` must be given")
    return side, side


def _split(state_dict: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The backbone's tensors under torchvision's names, and the remaining ones outside ICM, without unused layers."""
    backbone, rest = {}, {}
    first = ("conv1.", "bn1.", "layer", "fc.")
    for key, value in state_dict.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name.startswith(first):
            if not name.startswith(_DEAD):
                backbone[name] = value
        elif not key.startswith(_ICM):
            rest[key] = value
    dead = {k.rpartition(".")[0] for k, v in rest.items() if v.ndim > 1 and v.shape[1] in _DEAD_WIDTHS}
    return backbone, {k: v for k, v in rest.items() if k.rpartition(".")[0] not in dead}


def _names_after_the_backbone(rest: Mapping[str, Tensor], channels: int, width: int) -> dict[str, str]:
    """Maps the names of the features' and the threshold's convolutions to the authors', by shape."""
    last = [k for k, v in rest.items() if tuple(v.shape) == (1, channels, 1, 1)]
    wide = [k for k, v in rest.items() if tuple(v.shape) == (channels, width, 1, 1)]
    if (len(last), len(wide), len(rest)) != (1, 2, 3):
        listed = ", ".join(f"{k} {tuple(v.shape)}" for k, v in sorted(rest.items())) or "none"
        raise ValueError(
            f"these are not the authors' FAF-Net weights: besides backbone and cross_att there must be two tensors of "
            f"shape {(channels, width, 1, 1)} and one of shape {(1, channels, 1, 1)}, but there are: {listed}"
        )
    reduce, threshold = sorted(wide, key=lambda k: _common_prefix_length(k, last[0]))
    return {
        "encoder.reduce.weight": reduce,
        "encoder.threshold.0.weight": threshold,
        "encoder.threshold.2.weight": last[0],
    }


def _common_prefix_length(a: str, b: str) -> int:
    """Length of the common prefix of two names."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
