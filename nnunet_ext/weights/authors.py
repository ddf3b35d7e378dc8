"""The entry point for importing the authors' weights of every network."""

from collections.abc import Callable, Mapping
from inspect import signature

from torch import Tensor, nn

from nnunet_ext.networks.em_net.authors_weights import em_net_from_authors
from nnunet_ext.networks.faf_net.authors_weights import faf_net_from_authors
from nnunet_ext.networks.lstm_sa.authors_weights import lstmsa_from_authors, salstm_from_authors
from nnunet_ext.networks.mt_unet.authors_weights import mt_unet_from_authors
from nnunet_ext.networks.sasan.authors_weights import sasan_from_authors
from nnunet_ext.networks.u_mamba.authors_weights import umamba_bot_from_authors, umamba_enc_from_authors

IMPORTERS: dict[str, Callable[..., nn.Module]] = {
    "em_net": em_net_from_authors,
    "faf_net": faf_net_from_authors,
    "lstmsa": lstmsa_from_authors,
    "mt_unet": mt_unet_from_authors,
    "salstm": salstm_from_authors,
    "sasan": sasan_from_authors,
    "umamba_bot": umamba_bot_from_authors,
    "umamba_enc": umamba_enc_from_authors,
}


def from_authors(name: str, state_dict: Mapping[str, Tensor], **settings: object) -> nn.Module:
    """Builds a network with the authors' weights from their state dict, in eval mode.

    Sizes are inferred from the tensors. The following settings cannot be inferred:

    * ``sasan``: `heads` of ASEM's attentions (default: the largest divisor of the axis length up to 16, the
      authors' 16 at 96).
    * ``em_net``: `patch_size`, only for variant A, whose tensors show only the number of voxels (default: a cube);
      `efl_layout` (default: ``"authors"``, the layout that the weights were trained with).
    * ``salstm``, ``lstmsa``: `backbone`, a module whose weights are stored under ``encoder.`` (default: MT-UNet);
      `attention_size` (default: the published checkpoints' 7744); `patch_size` (default: inferred from MT-UNet).
    * ``faf_net``: `patch_size` (default: 4 (h - 1) + 1 for a filter grid of h), `input_channels` (default: 1),
      `num_classes` (default: 2, background and one class); `filter_grid` (default: inferred from the tensors). If the
      weights have no encoder, the result is the network after its encoder, which has `segment_features`.
    * ``mt_unet``: `patch_size`, a square (default: inferred from the number of tokens).
    * ``umamba_bot``, ``umamba_enc``: `strides` of the plan, which no tensor shows (default: 2 into every stage but the
      first; required where the kernels differ between axes); `patch_size` (default for ``umamba_enc``: the cube that
      a stage with channels as tokens shows; required if no stage has them).

    Args:
        name: Short name of the network.
        state_dict: The authors' parameter names and values.
        **settings: Settings of the network; see above.

    Raises:
        ValueError: for an unknown name or setting (lists the known ones), or for missing or unexpected keys (lists
            them).
    """
    if name not in IMPORTERS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(sorted(IMPORTERS))}")
    importer = IMPORTERS[name]
    _, *known = signature(importer).parameters
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; its settings: {', '.join(known)}")
    return importer(state_dict, **settings).eval()
