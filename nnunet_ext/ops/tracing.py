"""Whether operators are only followed, and packages that read memory through raw pointers must stay out."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_traced(x: Tensor) -> bool:
    """Whether torch.compile traces, or `x` is without content."""
    return torch.compiler.is_compiling() or isinstance(x, FakeTensor)


def has_content(x: Tensor) -> bool:
    """Whether there is memory behind `x` to read and write."""
    return not isinstance(x, FakeTensor)
