"""Files of weights: the authors' in, nnU-Net's out."""

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

_NESTED_UNDER = ("state_dict", "model_state_dict", "network_weights", "model", "net")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a third party's checkpoint; never runs code that the file may carry.

    Finds the state dict at the top or under one of the usual keys, and drops DataParallel's ``module.`` prefix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds anything but tensors and plain values, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an unusual pickle protocol; whether it loads is what counts
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read safely: it is damaged, or it holds Python objects beside tensors, and loading "
            "those could run code. Save the network's state_dict() alone and import that file."
        ) from error
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (a mapping of parameter names to tensors)")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def write_pretrained(network: nn.Module, path: str | Path) -> None:
    """Writes weights so that ``nnUNetv2_train ... -pretrained_weights PATH`` accepts them.

    The file appears complete or not at all.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    torch.save({"network_weights": network.state_dict()}, partial)
    os.replace(partial, path)
