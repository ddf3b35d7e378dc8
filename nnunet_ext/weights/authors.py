"""One entry for the authors' weights of every network."""

from collections.abc import Callable, Mapping
from inspect import signature

from torch import Tensor, nn

from nnunet_ext.networks import network_info
from nnunet_ext.weights.em_net import em_net_from_authors
from nnunet_ext.weights.sasan import sasan_from_authors

_IMPORTERS: dict[str, Callable[..., nn.Module]] = {"em_net": em_net_from_authors, "sasan": sasan_from_authors}


def from_authors(name: str, state_dict: Mapping[str, Tensor], **settings: object) -> nn.Module:
    """Builds a network from the authors' state dict, with their weights, in eval mode.

    Sizes are read off the tensors. Settings that tensors do not show:

    * ``sasan``: `heads` of ASEM's attentions (default: the largest divisor of the axis length up to 16, the
      authors' 16 at 96).
    * ``em_net``: `patch_size`, for variant A only, whose tensors show no more than the number of voxels (default: a
      cube); `efl_layout` (default: ``"authors"``, the one the weights were trained with).

    Args:
        name: Short name of the network, as in `nnunet_ext.networks.NETWORKS`.
        state_dict: The authors' parameter names and values.
        **settings: See above.

    Raises:
        ValueError: for an unknown name or setting (lists the known ones), or for missing or left-over keys (lists
            them).
    """
    importer = _IMPORTERS[network_info(name).name]
    _, *known = signature(importer).parameters
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; its settings: {', '.join(known)}")
    return importer(state_dict, **settings).eval()
