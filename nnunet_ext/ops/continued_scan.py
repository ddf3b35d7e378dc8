"""A selective scan that is computed segment by segment, with a state that is handed on; without gradients.

A long sequence costs page faults for every tensor of its length between the scan's inputs and its result. In segments
these tensors stay in the processor's cache.
"""

from typing import Optional

import torch
from torch import Tensor

from nnunet_ext.ops import cpu_scan
from nnunet_ext.ops.native import library_for
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.ops.tracing import is_traced
from nnunet_ext.utils.torch_private import in_function_transform


def can_continue(x: Tensor) -> bool:
    """Whether `continued_scan` takes tensors like x: in float32, on the CPU with the C extension, without gradients."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not (is_portable() or is_traced(x) or in_function_transform())
        and library_for("selective_scan", x) is not None
    )


@torch.library.custom_op("nnunet_ext::continued_scan", mutates_args=("state",), device_types="cpu")
def continued_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor],  # noqa: UP045
    z: Optional[Tensor],  # noqa: UP045
    delta_bias: Optional[Tensor],  # noqa: UP045
    delta_softplus: bool,
    state: Tensor,
) -> Tensor:
    """`selective_scan` of the next segment, forwards in time; `state` is that before it and becomes that after it.

    Shape:
        as `selective_scan`, with B and C (b, n, l); state (b, d, n), contiguous

    Raises:
        RuntimeError: where `can_continue` is false.
    """
    library = library_for("selective_scan", u)
    if library is None:
        raise RuntimeError("a scan can be continued by the C extension only")
    inputs = (u, delta, A, B[:, None], C[:, None], D, z, delta_bias)
    y, last, _ = cpu_scan.forward(library, *inputs, delta_softplus, False, False, first_state=state)
    state.copy_(last)
    return y


@continued_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state):
    return torch.empty_like(u)
