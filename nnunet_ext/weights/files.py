"""Reads weight files of others without executing what they may contain, and writes nnU-Net's."""

from pathlib import Path

import torch
from torch import nn

from nnunet_ext.networks.adapting.tied import geometry_of
from nnunet_ext.utils.files import replacing
from nnunet_ext.utils.state_dicts import read_safely, read_state_dict, state_dict_of

__all__ = ["GEOMETRY", "read_safely", "read_state_dict", "state_dict_of", "write_pretrained"]

GEOMETRY = "nnunet_ext_geometry"
"""Key of a file under which `write_pretrained` keeps what the tensors' shapes do not show."""


def write_pretrained(network: nn.Module, path: str | Path) -> None:
    """Writes weights so that ``nnUNetv2_train ... -pretrained_weights PATH`` accepts them.

    The file is written completely or not at all.

    Raises:
        OSError: if the file cannot be written; the message has its name and the reason.
    """
    with replacing(path) as file:
        torch.save({"network_weights": network.state_dict(), GEOMETRY: geometry_of(network)}, file)
