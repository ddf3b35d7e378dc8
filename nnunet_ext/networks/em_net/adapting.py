"""How EM-Net's filters and token positions travel to another patch."""

from collections.abc import Mapping

from torch import Tensor

from nnunet_ext.networks.adapting.spectra import resize_full, resize_half
from nnunet_ext.networks.adapting.tied import Declaration, Geometry, NotAdaptable, Tied
from nnunet_ext.networks.adapting.tokens import POSITIONS
from nnunet_ext.networks.em_net.csr_mamba import CSRMamba
from nnunet_ext.networks.em_net.efl import EFL


def resize_filter(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    """W (C, h, w, d // 2 + 1, 2) of an EFL layer over space, cropped or extended in frequency to `size`.

    Both transforms are orthonormal and on the same grid, so that their norms cancel and the factors need no scale; see
    `spectra`. Real and imaginary part are in the last axis, which stays.
    """
    *full, last = size
    for axis, new in enumerate(full, start=1):
        weight = resize_full(weight, new, axis)
    return resize_half(weight, last, len(full) + 1)


def _geometry(module: EFL) -> Geometry:
    return "spatial" if module.spatial else "authors", *module.size


def _guess(old: Mapping[str, Tensor], module: EFL) -> Geometry:
    """The layout and the parity of the last size show in no tensor: those of the new layer, or an even size."""
    *full, bins = old["weight"].shape[1:-1]
    last = module.size[-1]
    if last // 2 + 1 != bins:
        last = 2 * (bins - 1)
    return _geometry(module)[0], *full, last


def _adapt(old: Mapping[str, Tensor], module: EFL, geometry: Geometry) -> dict[str, Tensor]:
    """The new filter.

    In the authors' layout the axes of the transform are stretches of memory, which hold channels of a few voxels each.
    How channels and voxels alternate along them depends on the size, so that no filter of another size is the same
    function or near it.
    """
    layout = "spatial" if module.spatial else "authors"
    if geometry[0] != layout:
        raise NotAdaptable(f"its layout is {geometry[0]!r} in the file, {layout!r} here")
    if not module.spatial:
        raise NotAdaptable("the authors' layout filters memory, whose order changes with the patch")
    return {"weight": resize_filter(old["weight"], tuple(module.size))}


TIED: Declaration = {
    EFL: Tied(("weight",), _geometry, _guess, _adapt, "cropped or extended in frequency"),
    CSRMamba: POSITIONS,
}
"""What of EM-Net is tied to the patch."""
