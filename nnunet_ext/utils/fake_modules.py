"""Networks on fake tensors."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.utils.torch_private import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily


def fake_copy(network: nn.Module) -> nn.Module:
    """A copy of a network whose tensors are made in the active `FakeTensorMode`, on the default device.

    These are parameters, buffers and tensors in attributes; shared ones stay shared.
    """
    tensors: dict[int, Tensor] = {}
    for parameter in network.parameters():
        tensors[id(parameter)] = nn.Parameter(_empty_like(parameter), parameter.requires_grad)
    for buffer in network.buffers():
        tensors[id(buffer)] = _empty_like(buffer)
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):
                tensors[id(value)] = _empty_like(value)
    return copy.deepcopy(network, dict(tensors))


def built_on_fake_tensors(build: Callable[[], nn.Module]) -> nn.Module:
    """Builds a network in the active `FakeTensorMode`.

    A constructor that reads a tensor's values, rates of stochastic depth from ``torch.linspace`` for instance, cannot
    run on fake tensors: it runs on the CPU, and the result is a fake copy of that network.

    Args:
        build: Function that builds the network.
    """
    try:
        return build()
    except DataDependentOutputException:
        with unset_fake_temporarily(), torch.device("cpu"):
            network = build()
        return fake_copy(network)


def run_on_fake_tensors(
    build: Callable[[], nn.Module], input_channels: int, patch_size: Sequence[int]
) -> tuple[nn.Module, Any]:
    """Builds a network and runs it on one patch, without memory and without values.

    Returns:
        The network and what it returns, on fake tensors.
    """
    with FakeTensorMode(), torch.device("cpu"), torch.no_grad():
        network = built_on_fake_tensors(build)
        return network, network(torch.empty(1, input_channels, *patch_size))


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
