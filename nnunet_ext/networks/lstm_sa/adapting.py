"""How the scores of SALSTM's and LSTMSA's channel attention keep their size for slices of another size."""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from nnunet_ext.networks.adapting.tied import Geometry, NotAdaptable, Origin, Tied, sizes

_QUERY = re.compile(r"decoder\.attentions\.\d+\.query\.(weight|bias)")


def _geometry(module: Any) -> Geometry:
    """Voxels V of a slice and the attention size s; empty without a patch."""
    return () if module.patch_size is None else (prod(module.patch_size[-2:]), module.attention_size)


def _adapt(old: Mapping[str, Tensor], module: Any, origin: Origin) -> dict[str, Tensor]:
    """The new weights of the queries.

    A score is a sum over the V voxels of a slice, divided by sqrt(s): V / sqrt(s) times a mean over voxels, which
    resampling a slice does not change. LSTMSA's queries are proportional to a learnt projection, so that multiplying
    the projection by (V / sqrt(s)) / (V' / sqrt(s')) keeps the scores. SALSTM's are states without weights: there only
    s' = s (V' / V)^2, a setting of the trainer, keeps them.
    """
    (voxels, size), (new_voxels, new_size) = sizes(origin.geometry), sizes(_geometry(module))
    factor = (voxels / size**0.5) / (new_voxels / new_size**0.5)
    if factor == 1:
        return {}
    if not module.gated:
        kept = max(1, round(size * (new_voxels / voxels) ** 2))
        raise NotAdaptable(
            f"scores of the attention are {1 / factor:.2f} times as large as on the file's slices, and it has no "
            f"weight to undo that; a trainer with network_settings = {{'attention_size': {kept}}} keeps them"
        )
    return {name: factor * value for name, value in old.items() if _QUERY.fullmatch(name)}


SCORES = Tied((), _geometry, lambda old, module: None, _adapt, "scaled to keep the attention's scores")
"""The parameters of SALSTM and LSTMSA that are tied to the patch."""
