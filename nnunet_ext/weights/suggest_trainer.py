"""Suggests a trainer for imported weights, with the settings that the tensors do not hold."""

from math import prod
from typing import Any, cast

from torch import nn

from nnunet_ext.networks import LSTMSA, SALSTM, SASAN, EMNet, FAFNet, UMamba
from nnunet_ext.networks.sasan.axial_attention import AxialAttention, default_heads

_EM_NET = {
    ("EM-Net", "spatial"): "EMNetTrainer",
    ("EM-Net", "authors"): "EMNetAuthorsTrainer",
    ("A", "spatial"): "EMNetATrainer",
    ("B", "spatial"): "EMNetBTrainer",
    ("C", "spatial"): "EMNetCTrainer",
}


def suggest_trainer(network: nn.Module) -> str:
    """A sentence that names the trainer for a network of `from_authors`, and the settings that it needs.

    The settings matter because weights of equal shapes load under other settings without an error.
    """
    found = _trainer(network)
    if found is None:
        return f"{type(network).__name__} has no trainer of its own"
    trainer, settings = found
    if not settings:
        return f"train with -tr {trainer}"
    return (
        f"train with a trainer of your own, because the file does not hold these settings: "
        f"class MyTrainer({trainer}): network_settings = {settings}"
    )


def _trainer(network: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """A trainer, and the settings that a subclass of it must change."""
    if isinstance(network, SASAN):
        attentions = cast(list[AxialAttention], list(network.decoder.asem.attentions))
        usual = all(a.heads == default_heads(a.qkv.in_features) for a in attentions)
        return "SASANTrainer", {} if usual else {"heads": attentions[0].heads}
    if isinstance(network, EMNet):
        # Variant A has no frequency layers, and so no layout.
        kind = network.variant, "spatial" if network.variant == "A" else network.efl_layout
        if kind in _EM_NET:
            return _EM_NET[kind], {}
        return "EMNetTrainer", {"variant": network.variant, "efl_layout": network.efl_layout}
    if isinstance(network, (SALSTM, LSTMSA)):
        trainer = f"{type(network).__name__}MTUNetTrainer"
        size = network.attention_size
        usual = network.patch_size is not None and size == prod(network.patch_size[-2:])
        return trainer, {} if usual else {"attention_size": size}
    if isinstance(network, FAFNet):
        encoder = network.encoder.backbone.name
        return "FAFNetResNet101Trainer", {} if encoder == "resnet101" else {"encoder": encoder}
    if isinstance(network, UMamba):
        return f"UMamba{network.variant}Trainer", {}
    return None
