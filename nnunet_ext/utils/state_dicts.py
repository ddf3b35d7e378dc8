"""Reads state dicts from files of torch.save and of safetensors without executing what they may contain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_ext.utils.safe_load import NotPlainError, load_plain

_ALONE = (
    "Ask for the network's state_dict() alone; or, if you trust its author, load it yourself with "
    "torch.load(..., weights_only=False), save the state_dict() and import that file"
)
_NESTED_UNDER = ("state_dict", "model_state_dict", "network_weights", "model", "net")
_SAFETENSORS = ".safetensors"


def is_file_name(weights: str | Path) -> bool:
    """Whether weights are meant as a file, there or not, rather than as a name of known weights."""
    return isinstance(weights, Path) or Path(weights).suffix != "" or Path(weights).is_file()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a third party's checkpoint without ever executing code that the file may contain.

    Finds the state dict at the top level or under one of the usual keys, and drops DataParallel's ``module.`` prefix.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds anything other than tensors and plain values, or no state dict.
    """
    return state_dict_of(read_safely(path), path)


def read_safely(path: str | Path) -> Any:
    """Reads a file of torch's that may hold tensors, plain values, and numpy's numbers, as nnU-Net's checkpoints do.

    A file whose name ends in ``.safetensors`` is read as such; it holds tensors alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or holds anything else, which could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb"):  # raises the operating system's own error if the file cannot be opened
        pass
    try:
        if path.suffix == _SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(path)
        return load_plain(path)
    except NotPlainError as error:
        raise NotPlainError(path, error.objects, _ALONE) from error
    # The type of torch's error depends on which bytes are wrong.
    except Exception as error:
        raise ValueError(f"{path} cannot be read safely: {_reason(path)}") from error


def state_dict_of(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file's content, at the top level or under one of the usual keys.

    Raises:
        ValueError: if there is none; the message names the file.
    """
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (a mapping of parameter names to tensors)")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def _reason(path: Path) -> str:
    if path.stat().st_size == 0:
        return "it is empty"
    writer = "safetensors" if path.suffix == _SAFETENSORS else "torch"
    return f"it is truncated or was not written by {writer}; copy or download it again"
