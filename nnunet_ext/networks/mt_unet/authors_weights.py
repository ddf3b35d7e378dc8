"""Import of the authors' MT-UNet weights.

Exact for every batch and width, and for square images of every size: the authors' code takes no others, so other
patches are refused. In training, batch norms take the statistics of the batch that each call is given.
"""

from collections.abc import Iterable, Mapping
from math import isqrt

import torch
from torch import Tensor

from nnunet_ext.networks.em_net.authors_weights import pointwise
from nnunet_ext.networks.keys import check_keys, load_checked
from nnunet_ext.networks.mt_unet import EA_MODULES, LEVELS, STEM_LEVELS, MTUNet

_IGNORED = ".num_batches_tracked"
"""A counter that batch norm does not use at its default momentum."""
_COLOURS = 3
_TOKEN_SIZE = 2**STEM_LEVELS
_SQUARE = "the authors' code takes only square images, so there are no weights of theirs for others"

Names = dict[str, tuple[str, ...]]
"""Maps our parameter name to the authors' names, whose tensors are concatenated."""


def mt_unet_from_authors(state_dict: Mapping[str, Tensor], patch_size: int | Iterable[int] | None = None) -> MTUNet:
    """MT-UNet with the authors' weights; sizes are inferred from the tensors.

    If the first convolution has three channels, the network is assumed to repeat one channel to three, as the authors
    do; a network for three channels has parameters of the same names and shapes.

    Args:
        state_dict: The authors' parameter names and values.
        patch_size: P in pixels, a square; None: inferred from the number of tokens.

    Raises:
        ValueError: for missing or unexpected keys, tensors of the wrong shape, or a patch that is not square.
    """
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith(_IGNORED)}
    names = authors_names()
    check_keys("MT-UNet", state_dict, [k for keys in names.values() for k in keys])

    def width(name: str) -> int:
        return state_dict[f"{name}.weight"].shape[0]

    first = "encoder.0.block.0"
    features = [width(f"stem.model.res{i + 1}.conv.0.conv") for i in range(STEM_LEVELS)]
    features += [width("stem.trans_dim.conv"), width("encoder.0.block.2.conv"), width("encoder.1.block.2.conv")]
    channels = state_dict["stem.model.res1.conv.0.conv.weight"].shape[1]
    if patch_size is None:
        patch_size = _square(state_dict["stem.position_embedding"].shape[1])
    patch_size = patch_size if isinstance(patch_size, int) else tuple(patch_size)
    if not isinstance(patch_size, int) and len(set(patch_size)) > 1:
        raise ValueError(f"`patch_size`={patch_size}: {_SQUARE}")
    network = MTUNet(
        input_channels=1 if channels == _COLOURS else channels,
        num_classes=width("SegmentationHead"),
        patch_size=patch_size,
        features_per_stage=features,
        heads=features[STEM_LEVELS] // state_dict[f"{first}.EAttention.linear_0.weight"].shape[1],
        window=isqrt(width(f"{first}.CSAttention.dlightconv.linear")),
    )
    expected = network.state_dict()
    weights = gather(state_dict, names, expected)
    load_checked("MT-UNet", network, weights | {k: v for k, v in expected.items() if k.endswith(_IGNORED)})
    return network


def gather(state_dict: Mapping[str, Tensor], names: Names, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' tensors under our names; 1x1 convolutions become matrices where `expected` has a matrix.

    Raises:
        ValueError: if the tensors of one of our parameters differ in shape.
    """
    for keys in names.values():
        shapes = [tuple(state_dict[k].shape) for k in keys]
        if len(set(shapes)) > 1:
            listed = ", ".join(f"{k} {shape}" for k, shape in zip(keys, shapes, strict=True))
            raise ValueError(f"these are not the authors' MT-UNet weights: tensors of different shapes: {listed}")
    return {
        ours: pointwise(torch.cat([state_dict[k] for k in theirs]), expected[ours].ndim)
        for ours, theirs in names.items()
    }


def ea_names(ours: str, theirs: str) -> Names:
    """Maps the names of an EA module's tensors, from our prefix to the authors'."""
    names: Names = {f"mixed.axial.{kind}": (f"CSAttention.gaussiantrans.{kind}",) for kind in ("shift", "bias")}
    names |= _both("norm1", "SlayerNorm") | _both("norm2", "ElayerNorm")
    for kind in ("weight", "bias"):
        for attention, name in (("windows", "win_atten.attention"), ("axial", "global_atten")):
            keys = tuple(f"CSAttention.{name}.{part}_layer.{kind}" for part in ("query", "key", "value"))
            names[f"mixed.{attention}.qkv.{kind}"] = keys
    names |= _both("mixed.windows.out", "CSAttention.win_atten.attention.out")
    names |= _both("mixed.axial.out", "CSAttention.global_atten.out")
    names |= _both("mixed.pool.weigh", "CSAttention.dlightconv.linear")
    names |= _both("mixed.squeeze", "CSAttention.queeze")
    for part, name in (("query", "query_liner"), ("keys", "linear_0"), ("values", "linear_1"), ("out", "proj")):
        names |= _both(f"external.{part}", f"EAttention.{name}")
    return _under(ours, theirs, names)


def authors_names(ours: str = "", theirs: str = "") -> Names:
    """Maps the names of MT-UNet's tensors, from our prefix to the authors' (both with their final dot)."""
    names: Names = {f"encoder.downsampling.{STEM_LEVELS}.2.pos": ("stem.position_embedding",)}
    for level in range(STEM_LEVELS):
        names |= _double_conv(f"encoder.stages.{level}", f"stem.model.res{level + 1}")
        # The authors count from the lowest level up.
        names |= _both(f"decoder.upsampling.{level}", f"decoder_stem.block.trans{STEM_LEVELS - level}")
        names |= _double_conv(f"decoder.stages.{level}", f"decoder_stem.block.res{STEM_LEVELS - level}")
    names |= _conv_norm(f"encoder.downsampling.{STEM_LEVELS}.1", "stem.trans_dim")
    for level in range(STEM_LEVELS, LEVELS):
        i, bottleneck = level - STEM_LEVELS, level == LEVELS - 1
        names |= _ea_modules(f"encoder.stages.{level}", "bottleneck" if bottleneck else f"encoder.{i}.block", 0, 0)
        if not bottleneck:
            names |= _conv_norm(f"encoder.downsampling.{level + 1}", f"encoder.{i}.block.{EA_MODULES}")
    for i, level in enumerate(range(LEVELS - 2, STEM_LEVELS - 1, -1)):
        block, joined = f"decoder.{i}.block", int(level > STEM_LEVELS)
        names |= _both(f"decoder.upsampling.{level}", f"{block}.0")
        if joined:
            names |= _both(f"decoder.stages.{level}.0", f"{block}.1")
        names |= _ea_modules(f"decoder.stages.{level}", block, joined, 1 + joined)
    names |= _both("decoder.seg_layers.0", "SegmentationHead")
    return _under(ours, theirs, names)


def _ea_modules(ours: str, theirs: str, our_first: int, their_first: int) -> Names:
    names: Names = {}
    for i in range(EA_MODULES):
        names |= ea_names(f"{ours}.{our_first + i}.", f"{theirs}.{their_first + i}.")
    return names


def _double_conv(ours: str, theirs: str) -> Names:
    names = _conv_norm(f"{ours}.conv1", f"{theirs}.conv.0") | _conv_norm(f"{ours}.conv2", f"{theirs}.conv.1")
    return names | _both(f"{ours}.shortcut.conv", f"{theirs}.conv1") | _norm(f"{ours}.shortcut.norm", f"{theirs}.bn")


def _conv_norm(ours: str, theirs: str) -> Names:
    return {f"{ours}.conv.weight": (f"{theirs}.conv.weight",)} | _norm(f"{ours}.norm", f"{theirs}.bn")


def _norm(ours: str, theirs: str) -> Names:
    running = {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in ("running_mean", "running_var")}
    return _both(ours, theirs) | running


def _both(ours: str, theirs: str) -> Names:
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in ("weight", "bias")}


def _under(ours: str, theirs: str, names: Names) -> Names:
    return {f"{ours}{k}": tuple(f"{theirs}{v}" for v in values) for k, values in names.items()}


def _square(tokens: int) -> int:
    side = isqrt(tokens)
    if side**2 != tokens:
        raise ValueError(f"{tokens} tokens do not form a square: {_SQUARE}")
    return side * _TOKEN_SIZE
