"""Processing of images in chunks that are recomputed in the backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nnunet_ext.ops.portable import is_portable
from nnunet_ext.utils.torch_private import BatchNorm, in_function_transform


def checkpointed(module: nn.Module, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Calls function(*arguments) and recomputes its activations in the backward pass, with the weights of this call.

    `torch.func.functional_call` replaces a module's weights for one call only, so that PyTorch's checkpoints would
    recompute with other weights: silently wrong gradients. Transforms of torch.func do not support checkpoints; under
    them, and without gradients, nothing is recomputed.

    Args:
        module: Module whose weights the function uses.
        function: Function to call.
        arguments: Its arguments.
        settings: Settings of ``torch.utils.checkpoint.checkpoint``.
    """
    if in_function_transform() or not torch.is_grad_enabled():
        return function(*arguments)
    if torch.compiler.is_compiling():  # the compiler recomputes from the tensors that it has traced
        return checkpoint(function, *arguments, use_reentrant=False, **settings)
    held = _weights(module)

    def with_held_weights(*inputs: Any) -> Any:
        now = _weights(module)
        if all(now[name] is tensor for name, tensor in held.items()):
            return function(*inputs)
        replaced = {f"module.{name}": tensor for name, tensor in held.items()}
        return functional_call(_Call(module), replaced, (function, *inputs))

    return checkpoint(with_held_weights, *arguments, use_reentrant=False, **settings)


class _Call(nn.Module):
    """Calls a function that uses the weights of a module as if it were the module's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers; the others count batches, which `in_chunks` sees to."""
    buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return {**dict(module.named_parameters()), **buffers}


def in_chunks(
    module: nn.Module,
    function: Callable[..., tuple[Tensor, ...]],
    size: int,
    *tensors: Tensor,
    norms: nn.Module | None = None,
) -> tuple[Tensor, ...]:
    """Computes function(*tensors) on `size` images at a time; if there are several chunks, they are checkpointed.

    Args:
        module: Module whose weights the function uses.
        function: Function to compute.
        size: Images per chunk.
        tensors: Tensors of all images.
        norms: Module that holds the batch norms of `function`, so that recomputing a chunk does not update their
            running statistics again.
    """
    if is_portable() or tensors[0].shape[0] <= size:
        return function(*tensors)
    further: dict[str, Any] = {}
    modules = () if norms is None else norms.modules()
    tracking = [m for m in modules if isinstance(m, BatchNorm) and m.training and m.num_batches_tracked is not None]
    if tracking:
        further["context_fn"] = lambda: (nullcontext(), _statistics_kept(tracking))
    parts = [
        checkpointed(module, function, *chunk, preserve_rng_state=False, **further)
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
