"""Bytes of the tensors that are alive, and their peak, while operators run on tensors without content."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LimitExceeded(RuntimeError):
    """More bytes are alive than the limit of a `LiveMemory`."""


class LiveMemory(TorchDispatchMode):
    """Within: counts every storage once, from the operator that makes it until the last tensor on it is gone.

    Operators see only their arguments and results: what a kernel takes for itself is not counted.

    Args:
        limit: Bytes above which operators raise `LimitExceeded`; None: no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensors: Iterable[Tensor]) -> int:
        """Counts tensors made elsewhere; returns the bytes of those that were not counted yet."""
        return sum(self._count(tensor) for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata  # its address: unique while it lives
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
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
