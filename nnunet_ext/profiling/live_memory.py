"""Bytes of live tensors, and their peak, while operators run on fake tensors."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from nnunet_ext.utils.torch_private import TorchDispatchMode, storage_key, tree_leaves


class LimitExceeded(RuntimeError):
    """Raised when live tensors exceed the limit of a `LiveMemory`."""


class LiveMemory(TorchDispatchMode):
    """Context that counts every storage once, from the operator that creates it until its last tensor is freed.

    Only arguments and results of operators are seen; memory that a kernel allocates internally is not counted.

    Args:
        limit: Bytes above which operators raise `LimitExceeded`; None: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensors: Iterable[Tensor]) -> int:
        """Counts tensors created elsewhere; returns the bytes of those that were not counted before."""
        return sum(self._count(tensor) for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage_key(storage)
        if key in self._sizes:
            return 0
        self._sizes[key] = size = storage.nbytes()
        weakref.finalize(storage, self._release, key).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)
        if self.limit is not None and self.now > self.limit:
            raise LimitExceeded(f"{self.now} bytes are more than {self.limit}")
        return size

    def _release(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each counted once."""
    storages = {storage_key(t.untyped_storage()): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
