"""Fake tensors, which take no memory, on the CPU or on a GPU that need not exist."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nnunet_ext.utils.torch_private import FakeTensorMode, autocast_without_gpu


@contextmanager
def fake_tensors_on(device: str) -> Iterator[None]:
    """Context in which new tensors are on `device` and take no memory; operators compute sizes, types and strides only.

    Networks and autocast behave as on that device: on ``"cuda"`` with CUDA's operators, whether there is a GPU or
    not. Backward passes are those of `nnunet_ext.profiling.backward`, checkpointed regions included.
    """
    with (
        FakeTensorMode(),
        torch.device(device),
        autocast_without_gpu(),
    ):
        yield


def fake_copy(network: nn.Module) -> nn.Module:
    """A copy of a network whose parameters, buffers and tensors in attributes are made within `fake_tensors_on`.

    Shared ones stay shared.
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


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
