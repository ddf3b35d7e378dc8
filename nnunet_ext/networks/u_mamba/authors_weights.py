"""U-Mamba from the authors' weights.

Exact for every size, batch and width that the authors' code takes, given the plan's strides. No tensor shows them, and
with other strides the same tensors fit another network: where the kernels differ between axes they must be given, as
otherwise 2 into every stage but the first is assumed, nnU-Net's choice for isotropic patches. A patch that was inferred
is a cube, and inputs of another size are then refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.networks.keys import check_keys, load_checked
from nnunet_ext.networks.topology import PerStage, total_strides
from nnunet_ext.networks.u_mamba.mamba_layer import MambaLayer
from nnunet_ext.networks.u_mamba.network import UMamba
from nnunet_ext.networks.u_mamba.residual_block import ResidualBlock

_FIRST_KERNEL = "encoder.stages.{}.0.conv1.weight"
_EQUAL = (("decoder.encoder.", "encoder."), (".all_modules.0.", ".conv."), (".all_modules.1.", ".norm."))
"""Parts of the authors' names under which tensors are stored a second time, and the parts of their first names."""


def umamba_bot_from_authors(
    state_dict: Mapping[str, Tensor],
    patch_size: int | Sequence[int] | None = None,
    strides: PerStage | None = None,
) -> UMamba:
    """UMambaBot with the authors' weights; other sizes are inferred from the tensors.

    Args:
        state_dict: The authors' parameter names and values.
        patch_size: P in voxels; None: twice the product of the strides. The weights do not depend on it.
        strides: Strides into the stages as in the plan, per stage and axis, which no tensor shows; a single number
            goes into every stage but the first. None: 2, if no kernel differs between axes.

    Raises:
        ValueError: for missing or left-over keys, tensors of the wrong shape, or strides that must be given.
    """
    return _from_authors("UMambaBot", "Bot", state_dict, patch_size, strides)


def umamba_enc_from_authors(
    state_dict: Mapping[str, Tensor],
    patch_size: int | Sequence[int] | None = None,
    strides: PerStage | None = None,
) -> UMamba:
    """UMambaEnc with the authors' weights; arguments and errors are those of `umamba_bot_from_authors`.

    The patch decides in which stages channels are the tokens. None: a cube, inferred from the number of voxels of such
    a stage; an error if there is no such stage.
    """
    return _from_authors("UMambaEnc", "Enc", state_dict, patch_size, strides)


def _from_authors(
    name: str,
    variant: str,
    state_dict: Mapping[str, Tensor],
    patch_size: int | Sequence[int] | None,
    strides: PerStage | None,
) -> UMamba:
    state_dict = _without_copies(name, state_dict)
    stages = _counted(state_dict, r"encoder\.stages\.(\d+)\.")
    needed = ["encoder.stem.0.conv1.weight", "decoder.seg_layers.0.weight"]
    needed += [_FIRST_KERNEL.format(s) for s in range(max(stages, 2))]
    if any(key not in state_dict for key in needed):
        check_keys(name, [], [key for key in needed if key not in state_dict])
    kernels = [state_dict[_FIRST_KERNEL.format(s)] for s in range(stages)]
    conv_op = {4: nn.Conv2d, 5: nn.Conv3d}[kernels[0].ndim]
    if strides is None and any(len(set(kernel.shape[2:])) > 1 for kernel in kernels):
        raise ValueError(
            "the kernels differ between the axes, and so may the strides, which no tensor shows: `strides` must be "
            "given, per stage and axis as in the plan"
        )
    if strides is None:
        strides = 2
    if not isinstance(strides, int) and len(strides) == 1 and isinstance(strides[0], int):
        strides = strides[0]
    features = [kernel.shape[0] for kernel in kernels]
    per_stage = [1] + [strides] * (stages - 1) if isinstance(strides, int) else strides
    steps = [(step,) * (kernels[0].ndim - 2) if isinstance(step, int) else tuple(step) for step in per_stage]
    if patch_size is None:
        patch_size = _patch_size(variant, state_dict, features, steps)
    network = UMamba(
        input_channels=state_dict["encoder.stem.0.conv1.weight"].shape[1],
        num_classes=state_dict["decoder.seg_layers.0.weight"].shape[0],
        patch_size=patch_size,
        n_stages=stages,
        features_per_stage=features,
        conv_op=conv_op,
        kernel_sizes=[tuple(kernel.shape[2:]) for kernel in kernels],
        strides=steps,
        n_conv_per_stage=[_counted(state_dict, rf"encoder\.stages\.{s}\.(\d+)\.") for s in range(stages)],
        n_conv_per_stage_decoder=[
            max(1, _counted(state_dict, rf"decoder\.stages\.{s}\.(\d+)\.")) for s in range(stages - 1)
        ],
        variant=variant,
        deep_supervision=True,
    )
    names = authors_names(network)
    check_keys(name, state_dict, names.values())
    load_checked(name, network, {ours: state_dict[theirs] for ours, theirs in names.items()})
    return network


def authors_names(network: UMamba) -> dict[str, str]:
    """Maps our parameter names to the authors', who list the decoder's stages from the lowest up."""
    lowest = len(network.decoder.stages) - 1
    names: dict[str, str] = {}
    for level in range(lowest + 1):
        names |= _both(f"decoder.projections.{level}", f"decoder.upsample_layers.{lowest - level}.conv")
        names |= _both(f"decoder.seg_layers.{level}", f"decoder.seg_layers.{lowest - level}")
    for ours, module in network.named_modules():
        if isinstance(module, ResidualBlock):
            theirs = re.sub(r"^decoder\.stages\.(\d+)", lambda found: f"decoder.stages.{lowest - int(found[1])}", ours)
            names |= _block(ours, theirs, module)
        elif isinstance(module, MambaLayer):
            names |= _mamba_layer(ours, "mamba_layer" if network.variant == "Bot" else ours)
    return names


def _block(ours: str, theirs: str, block: ResidualBlock) -> dict[str, str]:
    names: dict[str, str] = {}
    projects = block.shortcut is not None
    for i in (1, 2):
        conv, norm = (f"conv{i}", f"norm{i}") if projects else (f"conv{i}.conv", f"conv{i}.norm")
        names |= _both(f"{ours}.conv{i}.conv", f"{theirs}.{conv}")
        names |= _both(f"{ours}.conv{i}.norm_act", f"{theirs}.{norm}")
    return names | (_both(f"{ours}.shortcut", f"{theirs}.conv3") if projects else {})


def _mamba_layer(ours: str, theirs: str) -> dict[str, str]:
    direction = f"{ours}.mamba.directions.0"
    names = _both(f"{ours}.norm", f"{theirs}.norm")
    names |= {f"{ours}.mamba.{kind}.weight": f"{theirs}.mamba.{kind}.weight" for kind in ("in_proj", "out_proj")}
    names |= {f"{direction}.{kind}": f"{theirs}.mamba.{kind}" for kind in ("A_log", "D", "x_proj.weight")}
    for kind in ("conv1d", "dt_proj"):
        names |= _both(f"{direction}.{kind}", f"{theirs}.mamba.{kind}")
    return names


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


def _without_copies(name: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keeps each tensor once: the authors' modules store some under two or four names.

    Raises:
        ValueError: if two names of one tensor have different values.
    """
    single: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        first = key
        for part, replacement in _EQUAL:
            first = first.replace(part, replacement)
        if not torch.equal(single.setdefault(first, value), value):
            raise ValueError(f"these are not the authors' {name} weights: {key} differs from {first}, its other name")
    return single


def _counted(keys: Iterable[str], pattern: str) -> int:
    """One more than the largest index that `pattern` finds in the keys; 0 if it finds none."""
    return max((int(found[1]) + 1 for key in keys if (found := re.match(pattern, key))), default=0)


def _patch_size(
    variant: str,
    state_dict: Mapping[str, Tensor],
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
) -> tuple[int, ...]:
    if variant == "Bot":
        return tuple(2 * total for total in total_strides(strides))
    for s, width in enumerate(features):
        norm = state_dict.get(f"encoder.mamba_layers.{s}.norm.weight")
        if norm is not None and len(norm) != width:  # a norm over the voxels
            axes = len(strides[0])
            edge = round(len(norm) ** (1 / axes))
            if edge**axes == len(norm):
                return tuple(edge * total for total in total_strides(strides[: s + 1]))
    raise ValueError("the tensors do not show the patch size, nor a cube in any stage: `patch_size` must be given")
