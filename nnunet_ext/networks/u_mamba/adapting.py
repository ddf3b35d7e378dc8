"""How the Mamba layers of U-Mamba Enc whose tokens are channels travel to another patch."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from nnunet_ext.blocks.mamba import Direction
from nnunet_ext.networks.adapting.features import norms, placed, placed_on_zero, strongest
from nnunet_ext.networks.adapting.grids import grid_like, resample, resample_input
from nnunet_ext.networks.adapting.tied import Declaration, Geometry, NotAdaptable, Origin, Tied, sizes
from nnunet_ext.networks.u_mamba.mamba_layer import MambaLayer

_VOXELS, _CHANNELS = "voxels as tokens", "channels as tokens"
_IN, _OUT = "mamba.in_proj.weight", "mamba.out_proj.weight"
_READ, _TO_STEPS = (f"mamba.directions.0.{name}.weight" for name in ("x_proj", "dt_proj"))
_PER_INNER = tuple(
    f"mamba.directions.0.{name}" for name in ("conv1d.weight", "conv1d.bias", "dt_proj.bias", "A_log", "D")
)
"""Parameters with one row per inner channel."""


def resize_channel_tokens(old: Mapping[str, Tensor], module: MambaLayer, grid: tuple[int, ...]) -> dict[str, Tensor]:
    """Weights of a layer whose tokens are channels with V voxels as features, for a grid of V' voxels.

    The weights that read or write voxels are resampled, with R from `resampling`:

        w' = R w, b' = R b (norm);  W'_in = W_in R(new -> old);  W'_out = R(old -> new) W_out

    R keeps mean and variance over voxels, by which the norm normalises. The 2 V inner channels, and the V / 16 from
    which time steps are computed, are no voxels: they are added without an effect, or the weakest are dropped
    (`features`). For a larger grid this is exact if w is constant; otherwise the error is what the smaller grid cannot
    represent of the product of w and the map.
    """
    direction = cast(Direction, module.mamba.directions[0])
    rank, inner = direction.split[0], direction.conv1d.out_channels
    initial = {name: value.detach() for name, value in module.state_dict().items()}
    new = {name: resample(old[name], grid, module.size) for name in ("norm.weight", "norm.bias")}

    writing = resample(old[_OUT], grid, module.size)
    channels = strongest(norms(writing, 1), inner)
    new[_OUT] = placed_on_zero(writing, inner, channels, 1)
    reading = resample_input(old[_IN], grid, module.size).chunk(2)  # rows of x and of the gate z
    parts = zip(reading, initial[_IN].chunk(2), strict=True)
    new[_IN] = torch.cat([placed(rows, first, channels, 0) for rows, first in parts])
    for name in _PER_INNER:
        new[name] = placed(old[name], initial[name], channels, 0)

    to_steps = old[_TO_STEPS][channels]
    steps = to_steps.shape[1]
    of_steps, of_states = placed_on_zero(old[_READ], inner, channels, 1).tensor_split([steps])
    kept = strongest(norms(of_steps, 0) * norms(to_steps, 1), rank)
    new[_READ] = torch.cat((placed(of_steps, initial[_READ][:rank], kept, 0), of_states))
    new[_TO_STEPS] = initial[_TO_STEPS].clone()
    new[_TO_STEPS][: len(channels)] = placed_on_zero(to_steps, rank, kept, 1)
    return new


def _geometry(module: MambaLayer) -> Geometry:
    return (_CHANNELS, *module.size) if module.channel_tokens else (_VOXELS,)


def _guess(old: Mapping[str, Tensor], module: MambaLayer) -> Geometry | None:
    width = len(old["norm.weight"])
    if module.channel_tokens:
        grid = grid_like(width, module.size)
        return None if grid is None else (_CHANNELS, *grid)
    return (_VOXELS,) if width == module.norm.normalized_shape[0] else (_CHANNELS,)


def _adapt(old: Mapping[str, Tensor], module: MambaLayer, origin: Origin) -> dict[str, Tensor]:
    kind, grid = origin.geometry[0], sizes(origin.geometry)
    if kind != _geometry(module)[0]:
        raise NotAdaptable(f"{kind} in the file, {_geometry(module)[0]} here")
    return resize_channel_tokens(old, module, grid) if module.channel_tokens else {}


TIED: Declaration = {
    MambaLayer: Tied(
        ("norm.weight", "norm.bias", _IN, _OUT, _READ, _TO_STEPS, *_PER_INNER),
        _geometry,
        _guess,
        _adapt,
        "resampled over the voxels (DCT)",
    )
}
"""The parameters of U-Mamba that are tied to the patch: in variant Enc, those of layers with channels as tokens."""
