"""Decorators of the networks' forward passes, for empty batches and for low-precision weights."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nnunet_ext.utils.torch_private import tree_map_only

_LOW = (torch.float16, torch.bfloat16)
_Forward = TypeVar("_Forward", bound=Callable[..., Any])


def with_empty_batches(forward: _Forward) -> _Forward:
    """Decorates a network's method so that an empty batch gives empty outputs with the shapes of one sample.

    The weights' gradients are then 0.
    """

    @wraps(forward)
    def entered(self: nn.Module, *inputs: Any, **further: Any) -> Any:
        if isinstance(inputs[0], Tensor) and inputs[0].shape[0] == 0:
            return _empty(self, forward, inputs, further)
        return forward(self, *inputs, **further)

    return entered  # type: ignore[return-value]


def at_any_precision(forward: _Forward) -> _Forward:
    """Decorates a network's method so that weights may be in float16 or bfloat16 (`network.half()`).

    Weights and inputs are widened to float32 for the call, because norms, transforms, scans and attention compute in
    float32 in any case. The results are in float32, too; the weights' gradients are in the weights' own precision.
    """

    @wraps(forward)
    def entered(self: nn.Module, *inputs: Any, **further: Any) -> Any:
        if any(p.dtype in _LOW for p in self.parameters()):
            return _widened(self, forward, inputs, further)
        return forward(self, *inputs, **further)

    return entered  # type: ignore[return-value]


def _empty(network: nn.Module, forward: Callable[..., Any], inputs: tuple, further: dict[str, Any]) -> Any:
    """Outputs of an empty batch: those of a sample of zeros, cut to no sample; running statistics do not change."""
    one, further = tree_map_only(Tensor, lambda x: x.new_zeros(1, *x.shape[1:]), (inputs, further))
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        return tree_map_only(Tensor, lambda x: x[:0], forward(network, *one, **further))
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Undecorated(nn.Module):
    """A network whose forward pass is an undecorated method, without its hooks, which have already been called."""

    def __init__(self, network: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.undecorated = forward

    def forward(self, *inputs: Any, **further: Any) -> Any:
        return self.undecorated(self.network, *inputs, **further)


def _widened(network: nn.Module, forward: Callable[..., Any], inputs: tuple, further: dict[str, Any]) -> Any:
    inputs, further = tree_map_only(Tensor, _at_least_float32, (inputs, further))
    buffers = {name: b for name, b in network.named_buffers() if b.dtype in _LOW}
    wide = {name: b.float() for name, b in buffers.items()}
    weights = {name: p.float() for name, p in network.named_parameters() if p.dtype in _LOW}
    replaced = {f"network.{name}": tensor for name, tensor in (weights | wide).items()}
    result = functional_call(_Undecorated(network, forward), replaced, inputs, further)
    with torch.no_grad():
        for name, buffer in buffers.items():  # running statistics were updated in the wide copies
            buffer.copy_(wide[name])
    return result


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _LOW else x
