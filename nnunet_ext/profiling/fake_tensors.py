"""Fake tensors, which take no memory, on the CPU or on a GPU that need not exist."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nnunet_ext.utils.torch_private import FakeTensorMode, autocast_without_gpu, nodes_kept, optimisers_without_values


@contextmanager
def fake_tensors_on(device: str) -> Iterator[None]:
    """Context in which new tensors are on `device` and take no memory; operators compute sizes, types and strides only.

    Networks and autocast behave as on that device: on ``"cuda"`` with CUDA's operators, whether there is a GPU or
    not. Backward passes are those of `nnunet_ext.profiling.backward`, checkpointed regions included.
    """
    with (
        nodes_kept(),
        FakeTensorMode(),
        torch.device(device),
        autocast_without_gpu(),
        optimisers_without_values(),
    ):
        yield
