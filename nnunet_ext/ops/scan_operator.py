"""The selective scan as an operator of torch.library, over its backends.

Two operators, `nnunet_ext::selective_scan` and its backward, each with an implementation for fake tensors, so that
torch.compile keeps one graph. Their tensors are all float32 or all float64, B and C are (b, g, n, l). A backend is a
pair of functions

    forward(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, save) -> y, last_state, saved
    backward(grad_y, grad_last_state, u, ..., delta_bias, saved, softplus, reverse) -> gradients

and the shape of `saved`, the states from which its backward recomputes: at most about the size of u.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import List, Optional  # noqa: UP035

import torch
from torch import Tensor

from nnunet_ext.ops import cpu_scan, segment_scan
from nnunet_ext.ops.native import library_for
from nnunet_ext.ops.scan_check import compare
from nnunet_ext.ops.self_check import Pairs, is_right


@dataclass(frozen=True)
class Backend:
    """A pair of functions, and a function from (b, d, n, l) to the shape of what the first saves for the second."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor | None, ...]]
    saved_shape: Callable[[int, int, int, int], tuple[int, ...]]


def _backend(name: str, u: Tensor) -> Backend:
    """The backend with a name, for tensors like u."""
    if name == "triton" and _triton_is_right(u.device):
        from nnunet_ext.ops import triton_scan

        return Backend(triton_scan.forward, triton_scan.backward, triton_scan.saved_shape)
    library = library_for("selective_scan", u) if name == "cpu" else None
    if library is None:
        shape = partial(segment_scan.saved_shape, device=u.device)
        return Backend(segment_scan.forward, segment_scan.backward, shape)
    return Backend(
        partial(cpu_scan.forward, library),
        partial(cpu_scan.backward, library),
        partial(cpu_scan.saved_shape, library),
    )


def _triton_is_right(device: torch.device) -> bool:
    """Whether the Triton kernels compile on a device and agree with plain PyTorch there."""
    if device.type == "cuda" and not torch.cuda.is_available():  # fake tensors of a GPU that does not exist
        return True

    def run() -> Pairs:
        from nnunet_ext.ops import triton_scan

        return compare(triton_scan.forward, triton_scan.backward, device)

    return is_right(("triton", str(device)), "the Triton kernel of the selective scan", run)


# torch.library reads these annotations, and knows Optional[Tensor] but, in older versions, not Tensor | None.
@torch.library.custom_op("nnunet_ext::selective_scan", mutates_args=())
def selective_scan_operator(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],  # noqa: UP045
    z: Optional[Tensor],  # noqa: UP045
    delta_bias: Optional[Tensor],  # noqa: UP045
    softplus: bool,
    reverse: bool,
    save: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, d, l), the last state (b, d, n), and, with `save`, the states that backward needs."""
    return _backend(backend, u).forward(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, save)


@selective_scan_operator.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, save, backend):
    b, d, length = u.shape
    shape = _backend(backend, u).saved_shape(b, d, A.shape[1], length) if save else (0,)
    return torch.empty_like(u), u.new_empty(b, d, A.shape[1]), u.new_empty(shape)


@torch.library.custom_op("nnunet_ext::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    grad_y: Tensor,
    grad_last_state: Optional[Tensor],  # noqa: UP045
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],  # noqa: UP045
    z: Optional[Tensor],  # noqa: UP045
    delta_bias: Optional[Tensor],  # noqa: UP045
    saved: Tensor,
    softplus: bool,
    reverse: bool,
    backend: str,
) -> List[Tensor]:  # noqa: UP006 - what PyTorch 2.5 reads
    """Gradients of those of u, delta, A, B, C, D, z and delta_bias that were given."""
    gradients = _backend(backend, u).backward(
        grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, saved, softplus, reverse
    )
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    pairs = zip(inputs, gradients, strict=True)
    return [_laid_out_as(x, gradient) for x, gradient in pairs if x is not None and gradient is not None]


def _laid_out_as(x: Tensor, gradient: Tensor) -> Tensor:
    """`gradient` in the memory layout that the implementation for fake tensors promises."""
    promised = torch.empty_like(x)
    return gradient if gradient.stride() == promised.stride() else promised.copy_(gradient)


@_selective_scan_backward.register_fake
def _(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, saved, softplus, reverse, backend):
    return [torch.empty_like(x) for x in (u, delta, A, B, C, D, z, delta_bias) if x is not None]


def _setup_context(ctx, inputs, output):
    *tensors, softplus, reverse, _, backend = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.options = softplus, reverse, backend
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_last_state, _):
    tensors = ctx.saved_tensors
    if grad_y is None:
        if grad_last_state is None:
            return (None,) * 12
        grad_y = torch.zeros_like(tensors[0])
    gradients = iter(_selective_scan_backward(grad_y, grad_last_state, *tensors, *ctx.options))
    return (*(None if x is None else next(gradients) for x in tensors[:-1]), None, None, None, None)


selective_scan_operator.register_autograd(_backward, setup_context=_setup_context)
