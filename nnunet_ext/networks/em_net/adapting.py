"""How EM-Net's filters and token positions travel to another patch."""

from collections.abc import Mapping

from torch import Tensor

from nnunet_ext.networks.adapting.spectra import resize_half_spectrum
from nnunet_ext.networks.adapting.tied import Declaration, Geometry, NotAdaptable, Origin, Tied, sizes
from nnunet_ext.networks.adapting.tokens import POSITIONS
from nnunet_ext.networks.em_net.csr_mamba import CSRMamba
from nnunet_ext.networks.em_net.efl import EFL


def _geometry(module: EFL) -> Geometry:
    return "spatial" if module.spatial else "authors", *module.size


def _guess(old: Mapping[str, Tensor], module: EFL) -> Geometry:
    """The layout and the parity of the last size show in no tensor: those of the new layer, or an even size."""
    *full, bins = old["weight"].shape[1:-1]
    last = module.size[-1]
    if last // 2 + 1 != bins:
        last = 2 * (bins - 1)
    return _geometry(module)[0], *full, last


def _adapt(old: Mapping[str, Tensor], module: EFL, origin: Origin) -> dict[str, Tensor]:
    """The new filter W (C, h, w, d // 2 + 1, 2); see `spectra`.

    Over space, both transforms are orthonormal and on the same grid, so that their norms cancel. In the authors' layout
    the axes of the transform are stretches of memory, which hold channels of a few voxels each. How channels and voxels
    alternate along them depends on the size, so that no filter of another size is the same function, or near it.
    """
    layout, there = _geometry(module)[0], origin.geometry[0]
    if there != layout:
        raise NotAdaptable(f"its layout is {there!r} in the file, {layout!r} here")
    if not module.spatial:
        raise NotAdaptable("the authors' layout filters memory, whose order changes with the patch")
    size = sizes(origin.geometry)
    zoom = origin.zoom_of(size, module.size)
    if module.exchanged and origin.zoom is not None:  # sizes are those of the exchanged axes already
        zoom = (*zoom[:-2], zoom[-1], zoom[-2])
    return {"weight": resize_half_spectrum(old["weight"], size, module.size, zoom)}


TIED: Declaration = {
    EFL: Tied(("weight",), _geometry, _guess, _adapt, "resampled in frequency", in_mm=True),
    CSRMamba: POSITIONS,
}
"""The parameters of EM-Net that are tied to the patch."""
