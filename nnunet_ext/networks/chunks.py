"""Processing of images in chunks that are recomputed in the backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.utils.torch_private import BatchNorm


def in_chunks(
    function: Callable[..., tuple[Tensor, ...]], size: int, *tensors: Tensor, norms: nn.Module | None = None
) -> tuple[Tensor, ...]:
    """Computes function(*tensors) on `size` images at a time; if there are several chunks, they are checkpointed.

    Args:
        function: Function to compute.
        size: Images per chunk.
        tensors: Tensors of all images.
        norms: Module that holds the batch norms of `function`, so that recomputing a chunk does not update their
            running statistics again.
    """
    if tensors[0].shape[0] <= size:
        return function(*tensors)
    further: dict[str, Any] = {}
    modules = () if norms is None else norms.modules()
    tracking = [m for m in modules if isinstance(m, BatchNorm) and m.training and m.num_batches_tracked is not None]
    if tracking:
        further["context_fn"] = lambda: (nullcontext(), _statistics_kept(tracking))
    parts = [
        checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False, **further)
        if torch.is_grad_enabled()
        else function(*chunk)
        for chunk in zip(*(t.split(size) for t in tensors), strict=True)
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


@contextmanager
def _statistics_kept(norms: Sequence[BatchNorm]) -> Iterator[None]:
    """Context in which batch norms normalise by the batch without changing their running statistics."""
    momenta = [norm.momentum for norm in norms]
    counters = [cast(Tensor, norm.num_batches_tracked) for norm in norms]
    counts = [counter.clone() for counter in counters]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter, count in zip(norms, momenta, counters, counts, strict=True):
            norm.momentum = momentum
            counter.copy_(count)
