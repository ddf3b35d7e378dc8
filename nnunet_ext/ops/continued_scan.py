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
    """Whether `continued_scan` takes tensors like x: in float32, on the CPU with the C extension, without gradients.

    Not while code is traced or exported, which would fix the number of segments.
    """
    recorded = is_portable() or is_traced(x) or torch.jit.is_tracing() or in_function_transform()
    return not (recorded or torch.is_grad_enabled()) and x.numel() > 0 and library_for("selective_scan", x) is not None


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
    """`selective_scan` of the next segment, forwards in time; it has no gradient. Ask `can_continue` first.

    `state` is the state before this segment, and is overwritten with the state after it.

    Shape:
        as `selective_scan`, with B and C (b, n, l); state (b, d, n)

    Raises:
        RuntimeError: if the C extension is missing, has failed its check, or does not take tensors of these types.
    """
    library = library_for("selective_scan", u, delta, A, B, C, D, z, delta_bias, state)
    if library is None:
        raise RuntimeError("only the C extension continues a scan, on the CPU in float32, and it cannot be used here")
    inputs = (u, delta, A, B[:, None], C[:, None], D, z, delta_bias)
    y, last, _ = cpu_scan.forward(library, *inputs, delta_softplus, False, False, first_state=state.contiguous())
    state.copy_(last)
    return y


@continued_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, state):
    return torch.empty_like(u)
