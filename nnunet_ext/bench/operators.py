"""The convolutions and matrix products of a call by themselves: what no optimisation around them can save."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_aten = torch.ops.aten
PRODUCTS = (
    _aten.convolution,
    _aten.convolution_backward,
    _aten.mm,
    _aten.addmm,
    _aten.bmm,
    _aten.baddbmm,
    _aten.mv,
    _aten.dot,
)
"""Convolutions and matrix products as they reach a device, forward and backward."""


@dataclass(frozen=True)
class _Like:
    """A tensor without its content: shape, strides and type."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "_Like":
        return cls(tuple(x.shape), x.stride(), x.dtype, x.device)

    def random(self) -> Tensor:
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        memory = torch.randn(max(span, 1), device=self.device).to(self.dtype)
        return memory.as_strided(self.shape, self.strides)


@dataclass(frozen=True)
class Call:
    """An operator and its arguments, tensors replaced by their shapes, strides and types."""

    operator: Any
    arguments: tuple
    keywords: dict

    @property
    def tensors(self) -> list[_Like]:
        return [x for x in tree_leaves((self.arguments, self.keywords)) if isinstance(x, _Like)]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            self.calls.append(Call(func, *tree_map_only(Tensor, _Like.of, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def record(call: Callable[[], object]) -> list[Call]:
    """The convolutions and matrix products that `call` runs, in order, those of its backward pass included."""
    with _Recorder() as recorder:
        call()
    return recorder.calls


def replay(calls: list[Call]) -> Callable[[], None]:
    """A function that runs recorded operators, one after the other, on random tensors laid out as the recorded ones.

    Tensors of one layout share their memory, so that the function holds little more than the call did.
    """
    memory = {like: like.random() for call in calls for like in call.tensors}
    ready = [(c.operator, *tree_map_only(_Like, memory.__getitem__, (c.arguments, c.keywords))) for c in calls]

    @torch.no_grad()
    def run() -> None:
        for operator, arguments, keywords in ready:
            operator(*arguments, **keywords)

    return run
