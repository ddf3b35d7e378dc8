"""Import of the authors' EM-Net weights.

Exact for every batch, width and size that the authors' code takes. Their frequency layers need equal sizes along the
last two axes, so weights with such layers are refused at other sizes, where this network is well defined but theirs
does not exist.
"""

import re
from collections.abc import Iterable, Mapping
from math import prod

from torch import Tensor, nn

from nnunet_ext.networks.em_net import LAYERS_PER_STAGE, VARIANTS, EMNet
from nnunet_ext.networks.keys import check_keys, load_checked

_AUTHORS_STAGES = 4
_IGNORED = ".num_batches_tracked"
"""A counter that batch norm does not use at its default momentum."""


def em_net_from_authors(
    state_dict: Mapping[str, Tensor], patch_size: int | Iterable[int] | None = None, efl_layout: str = "authors"
) -> EMNet:
    """EM-Net with the authors' weights and the heads they contain; sizes are inferred from the tensors.

    The variant follows from the stages that have EFL layers, and the patch size from their filters: the two filters of
    a stage together show the size of every axis.

    Args:
        state_dict: The authors' parameter names and values.
        patch_size: P in voxels; None: inferred from the filters or, without filters (variant A), assumed to be a cube.
        efl_layout: ``"authors"``, the layout of their code, or ``"spatial"`` to continue training in the paper's.

    Raises:
        ValueError: for missing or unexpected keys, tensors of the wrong shape, a patch that is not a cube and was not
            specified, or frequency layers at sizes that the authors' code does not take.
    """
    state_dict = {k: v for k, v in state_dict.items() if not k.endswith(_IGNORED)}
    found = [int(m[1]) for k in state_dict if (m := re.match(r"mamba_encoder\.stages\.(\d+)\.", k))]
    stages = max(max(found) + 1 if found else _AUTHORS_STAGES, 2)
    variant = _variant(state_dict, stages)
    efl_layers = VARIANTS[variant].efl_layers(stages)
    heads = max((i for i in range(1, stages + 1) if f"{_head(i - 1)}.weight" in state_dict), default=1)
    names = authors_names(efl_layers, heads)
    check_keys("EM-Net", state_dict, names.values())

    strides = [tuple(state_dict[_down(s)].shape[2:]) for s in range(stages)]
    n = len(strides[0])
    if patch_size is None:
        patch_size = _patch_size(state_dict, strides, efl_layers)
    patch_size = (patch_size,) * n if isinstance(patch_size, int) else tuple(patch_size)
    if any(efl_layers) and patch_size[-1] != patch_size[-2]:
        raise ValueError(
            f"`patch_size`={patch_size}: the authors' frequency layers take only equal sizes along the last two axes, "
            "so there are no weights of theirs for this patch"
        )
    kernels = [state_dict[f"{_last_layer(s)}.conv51.conv1.conv.weight"].shape[2:] for s in range(stages)]
    network = EMNet(
        input_channels=state_dict[_down(0)].shape[1],
        num_classes=state_dict[f"{_head(0)}.weight"].shape[0],
        patch_size=patch_size,
        n_stages=stages + 1,
        features_per_stage=[
            state_dict["decoder1.transp_conv.conv.weight"].shape[1],
            *(state_dict[_down(s)].shape[0] for s in range(stages)),
        ],
        conv_op=nn.Conv3d if n == 3 else nn.Conv2d,
        kernel_sizes=[state_dict["decoder1.decoder_block.0.conv1.conv.weight"].shape[2:], *kernels],
        strides=[(1,) * n, *strides],
        variant=variant,
        efl_layout=efl_layout,
        outputs=heads,
        deep_supervision=heads > 1,
    )
    expected = network.state_dict()
    weights = {ours: pointwise(state_dict[theirs], expected[ours].ndim) for ours, theirs in names.items()}
    load_checked("EM-Net", network, weights | {k: v for k, v in expected.items() if k.endswith(_IGNORED)})
    return network


def pointwise(weight: Tensor, ndim: int) -> Tensor:
    """A 1x1 convolution's weight, reshaped to a matrix if a matrix (`ndim` 2) is needed."""
    return weight.flatten(1) if ndim == 2 < weight.ndim and weight.shape[2:].numel() == 1 else weight


def csr_mamba_names(ours: str, theirs: str) -> dict[str, str]:
    """Maps the names of a CSR Mamba layer's tensors, from our prefix to the authors'."""
    names = {"pos": "pos_embed", "gamma": "gamma"}
    names |= _both("norm", "norm") | _both("norm_m", "norm1") | _both("norm_s", "norm2")
    names |= _both("mlp.fc1", "mlp.fc1") | _both("mlp.fc2", "mlp.fc2") | _both("project", "conv8.1")
    for i in (1, 2):
        names |= {f"block.conv{i}.weight": f"conv51.conv{i}.conv.weight"}
        names |= _both(f"block.norm{i}", f"conv51.norm{i}")
        names |= {f"block.norm{i}.{kind}": f"conv51.norm{i}.{kind}" for kind in ("running_mean", "running_var")}
    names |= {f"mamba.{kind}.weight": f"mamba.{kind}.weight" for kind in ("in_proj", "out_proj")}
    for i, end in enumerate(("", "_b")):
        direction = f"mamba.directions.{i}"
        names |= {f"{direction}.x_proj.weight": f"mamba.x_proj{end}.weight"}
        names |= {f"{direction}.A_log": f"mamba.A{end}_log", f"{direction}.D": f"mamba.D{end}"}
        for kind in ("conv1d", "dt_proj"):
            names |= _both(f"{direction}.{kind}", f"mamba.{kind}{end}")
    return _under(ours, theirs, names)


def efl_names(ours: str, theirs: str) -> dict[str, str]:
    """Maps the names of an EFL layer's tensors, from our prefix to the authors'."""
    same = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    names = {"weight": "ffp_module.complex_weight"}
    return _under(ours, theirs, names | {k: v for name in same for k, v in _both(name, name).items()})


def authors_names(efl_layers: tuple[int, ...], heads: int) -> dict[str, str]:
    """Maps our parameter names to the authors', given the EFL layers per stage and the number of heads."""
    names: dict[str, str] = {}
    for s, n_efl in enumerate(efl_layers):
        for i in range(2):
            names |= _both(f"encoder.downsampling.{s}.{i}", f"mamba_encoder.downsample_layers.{s}.{i}")
        for i in range(LAYERS_PER_STAGE):
            layer_names = efl_names if i < n_efl else csr_mamba_names
            names |= layer_names(f"encoder.stages.{s}.{i}.", f"mamba_encoder.stages.{s}.{i}.")
        names |= _both(f"encoder.skips.{s}.norm", f"mamba_encoder.norm{s}")
        for kind in ("fc1", "fc2"):
            names |= _both(f"encoder.skips.{s}.mlp.{kind}", f"mamba_encoder.mlps.{s}.{kind}")
        names[f"decoder.upsampling.{s}.weight"] = f"decoder{s + 1}.transp_conv.conv.weight"
        if s > 0:
            for i in range(LAYERS_PER_STAGE):
                names |= csr_mamba_names(f"decoder.stages.{s}.{i}.", f"decoder{s + 1}.decoder_block.0.{i}.")
    for i, ours in enumerate(("conv1", "conv2", "shortcut"), start=1):
        names[f"decoder.image.{ours}.conv.weight"] = f"encoder1.layer.conv{i}.conv.weight"
    for i in range(2):
        names[f"decoder.stages.0.{i}.conv.weight"] = f"decoder1.decoder_block.0.conv{i + 1}.conv.weight"
    for level in range(heads):
        names |= _both(f"decoder.seg_layers.{level}", _head(level))
    return names


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


def _under(ours: str, theirs: str, names: dict[str, str]) -> dict[str, str]:
    return {f"{ours}{k}": f"{theirs}{v}" for k, v in names.items()}


def _head(level: int) -> str:
    return f"out{level + 1 if level else ''}.conv.conv"


def _down(stage: int) -> str:
    return f"mamba_encoder.downsample_layers.{stage}.{0 if stage == 0 else 1}.weight"


def _last_layer(stage: int) -> str:
    return f"mamba_encoder.stages.{stage}.{LAYERS_PER_STAGE - 1}"


def _filter(stage: int, layer: int) -> str:
    return f"mamba_encoder.stages.{stage}.{layer}.ffp_module.complex_weight"


def _variant(state_dict: Mapping[str, Tensor], stages: int) -> str:
    """The variant whose EFL layers fit best; `check_keys` then lists the keys that it does not explain."""
    held = [sum(_filter(s, i) in state_dict for i in range(LAYERS_PER_STAGE)) for s in range(stages)]
    names = [name for name, variant in VARIANTS.items() if variant.mamba]

    def misfit(name: str) -> int:
        return sum(abs(a - b) for a, b in zip(held, VARIANTS[name].efl_layers(stages), strict=True))

    return min(names, key=misfit)


def _patch_size(
    state_dict: Mapping[str, Tensor], strides: list[tuple[int, ...]], efl_layers: tuple[int, ...]
) -> tuple[int, ...]:
    n = len(strides[0])
    stage = next((s for s, layers in enumerate(efl_layers) if layers), None)
    if stage is None:
        stage, voxels = 0, state_dict[f"{_last_layer(0)}.pos_embed"].shape[1]
        size = (round(voxels ** (1 / n)),) * n
        if prod(size) != voxels:
            raise ValueError(f"{voxels} tokens in the first stage do not form a cube: `patch_size` must be given")
    else:
        # The last axis of a filter is halved; the second filter has the last two axes exchanged.
        first, second = (state_dict[_filter(stage, layer)].shape[1:-1] for layer in range(2))
        size = (*first[:-1], second[-2])
    totals = [prod(stride[axis] for stride in strides[: stage + 1]) for axis in range(n)]
    return tuple(s * t for s, t in zip(size, totals, strict=True))
