"""How FAF-Net's adaptive filters travel to another filter grid."""

from collections.abc import Mapping

from torch import Tensor

from nnunet_ext.networks.adapting.grids import aligned, along, grid_like
from nnunet_ext.networks.adapting.tied import Declaration, Geometry, Origin, Tied, sizes
from nnunet_ext.networks.faf_net.adaptive_filter import FilterBranch


def resize_filters(weight: Tensor, bias: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """W (h (w // 2 + 1), h w) and b of AFF for another filter grid.

    For features of another size, AFF resizes its responses to the grid and the filters back, linearly with aligned
    corners. With the matrices A of these two steps,

        W' = A(half grid -> half grid') W A(grid' -> grid),  b' = A(half grid -> half grid') b,

    a network with the new grid computes for features of this grid exactly what the old network computes for them. Up
    and then down is the identity where the new points include the old ones, (h' - 1) divisible by (h - 1).
    """
    (height, width), (new_height, new_width) = old, new
    reading = weight.unflatten(1, (height, width))
    for axis, (o, n) in enumerate(((height, new_height), (width, new_width)), start=1):
        reading = along(aligned(n, o).T, reading, axis)
    writing = [x.unflatten(0, (height, width // 2 + 1)) for x in (reading.flatten(1), bias)]
    for axis, (o, n) in enumerate(((height, new_height), (width // 2 + 1, new_width // 2 + 1))):
        writing = [along(aligned(o, n), x, axis) for x in writing]
    new_weight, new_bias = (x.flatten(0, 1) for x in writing)
    return new_weight, new_bias


def _guess(old: Mapping[str, Tensor], module: FilterBranch) -> Geometry | None:
    return grid_like(old["down.weight"].shape[1], module.grid)


def _adapt(old: Mapping[str, Tensor], module: FilterBranch, origin: Origin) -> dict[str, Tensor]:
    weight, bias = resize_filters(old["down.weight"], old["down.bias"], sizes(origin.geometry), module.grid)
    return {"down.weight": weight, "down.bias": bias}


TIED: Declaration = {
    FilterBranch: Tied(
        ("down.weight", "down.bias"),
        lambda module: tuple(module.grid),
        _guess,
        _adapt,
        "interpolated to another filter grid",
    )
}
"""The parameters of FAF-Net that are tied to the patch."""
