"""Reading files of torch.save without executing code that they may contain."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

_CORE = getattr(np, "_core", None) or np.core  # renamed by NumPy 2
_MAKERS = (_CORE.multiarray.scalar, _CORE.multiarray._reconstruct)
_RENAMED_SINCE = (2, 7)
"""PyTorch's version since which an allowed object may have another name than its own."""
_NUMPY: list[Any] = [
    *_MAKERS,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
]
"""NumPy's numbers and arrays, which nnU-Net's logs and scores hold: constructors, and the classes of their types."""


if torch.__version__ >= _RENAMED_SINCE:  # type: ignore[operator]
    _NUMPY += [(make, f"numpy.{core}.multiarray.{make.__name__}") for make in _MAKERS for core in ("core", "_core")]


class NotPlainError(ValueError):
    """A file that holds other Python objects than tensors, numbers, texts and containers of them.

    Attributes:
        objects: Name of the first of them.
    """

    def __init__(self, path: str | Path, objects: str, remedy: str = "") -> None:
        message = (
            f"{path} holds Python objects besides tensors ({objects}), and loading those can execute arbitrary code"
        )
        super().__init__(f"{message}. {remedy}" if remedy else message)
        self.objects = objects


def load_plain(path: str | Path, *, mmap: bool = False) -> Any:
    """Loads a file of torch.save that holds tensors, numbers, texts, and containers of them; on the CPU.

    PyTorch interprets the file itself and refuses whatever could execute code. A class of a user's own whose objects
    are harmless is allowed by ``torch.serialization.add_safe_globals``.

    Args:
        path: The file.
        mmap: Whether tensors stay in the file until they are used.

    Raises:
        NotPlainError: if the file holds anything else.
        Exception: for a damaged file; its type depends on which bytes are wrong.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY):
            warnings.simplefilter("ignore")  # about an unusual pickle protocol; only whether it loads matters
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise NotPlainError(path, found[1]) from error
        raise


def without_numpy(value: Any) -> Any:
    """The same dicts, lists and tuples with Python's numbers instead of NumPy's, which PyTorch alone does not allow."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:  # a state dict is an OrderedDict with attributes of its own, and holds tensors alone
        return {without_numpy(key): without_numpy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_numpy(item) for item in value)
    return value
