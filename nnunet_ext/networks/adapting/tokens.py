"""Weights per token, such as position embeddings: interpolated from one grid of tokens to another."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_ext.networks.adapting.grids import grid_like, resample
from nnunet_ext.networks.adapting.tied import Geometry, Origin, Tied, sizes


def _guess(old: Mapping[str, Tensor], module: Any) -> Geometry | None:
    return grid_like(old["pos"].shape[1], module.size)


def _adapt(old: Mapping[str, Tensor], module: Any, origin: Origin) -> dict[str, Tensor]:
    return {"pos": resample(old["pos"], sizes(origin.geometry), module.size, axis=1)}


POSITIONS = Tied(("pos",), lambda module: tuple(module.size), _guess, _adapt, "interpolated between tokens (DCT)")
"""For a module with a position embedding `pos` (1, tokens, C) on a grid `size`; see `grids.resampling`."""
