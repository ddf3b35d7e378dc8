"""Detects tracing, in which code that reads memory through raw pointers must not run."""

import torch
from torch import Tensor

from nnunet_ext.utils.torch_private import FakeTensor


def is_traced(x: Tensor) -> bool:
    """Whether torch.compile traces, or `x` is a fake tensor."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor)
