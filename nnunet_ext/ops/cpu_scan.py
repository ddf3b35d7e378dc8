"""The selective scan on the CPU by the C extension; float32, any number of states."""

import ctypes
from functools import partial

import torch
from torch import Tensor

from nnunet_ext.ops import segment_scan
from nnunet_ext.ops.native import NativeLibrary, Strided, checked, pointer, readable, structure
from nnunet_ext.ops.scan_check import compare, example_inputs
from nnunet_ext.ops.self_check import Pairs

_TENSORS = ("u", "delta", "z", "y", "B", "C")
_GRADIENTS = ("grad_y", "grad_u", "grad_delta", "grad_z", "grad_B", "grad_C")


@structure("scan")
class _Scan(ctypes.Structure):
    """`scan` of csrc/selective_scan.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "groups", "states", "length")),
        *((name, ctypes.c_int32) for name in ("softplus", "reverse", "parts", "threads")),
        *((name, Strided) for name in _TENSORS),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias", "first_state", "last_state", "saved")),
        *((name, Strided) for name in _GRADIENTS),
        *((name, ctypes.c_int64) for name in ("grad_B_part", "grad_C_part")),
        *((name, ctypes.c_void_p) for name in ("grad_last_state", "grad_A", "grad_D", "grad_bias")),
    ]


def saved_shape(library: NativeLibrary, b: int, d: int, n: int, length: int) -> tuple[int, ...]:
    """Shape of the saved states, one per tile of steps."""
    tile = library.functions.selective_scan_tile()
    return b, -(-length // tile), n, d


def forward(
    library: NativeLibrary,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    save: bool,
    first_state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state and the states saved for `backward`; see `nnunet_ext.ops.scan_operator`.

    `first_state` (b, d, n), contiguous, is the state before the first step, instead of zeros.
    """
    b, d, length = u.shape
    n = A.shape[1]
    y = torch.empty_like(u)
    last_state = u.new_empty(b, d, n)
    saved = u.new_empty(saved_shape(library, b, d, n, length) if save else (0,))
    tensors = _prepare(u, delta, A, B, C, D, z, delta_bias)
    scan = _describe(library, *tensors, softplus, reverse)
    written = y if 1 in y.stride()[1:] else torch.empty_like(u, memory_format=torch.contiguous_format)
    scan.y = Strided.of(written)
    scan.first_state, scan.last_state = pointer(first_state), pointer(last_state)
    scan.saved = pointer(saved) if save else None
    library.call("selective_scan_forward", scan)
    if written is not y:
        y.copy_(written)
    return y, last_state, saved


def backward(
    library: NativeLibrary,
    grad_y: Tensor,
    grad_last_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    saved: Tensor,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias; None for tensors that were not given."""
    u, delta, A, B, C, D, z, delta_bias = _prepare(u, delta, A, B, C, D, z, delta_bias)
    scan = _describe(library, u, delta, A, B, C, D, z, delta_bias, softplus, reverse)
    b, d, _ = u.shape
    grad_y = readable(grad_y)
    grad_u, grad_delta = torch.empty_like(u), torch.empty_like(delta)
    grad_z = None if z is None else torch.empty_like(z)
    # Each part sums over its own channels.
    grad_B, grad_C = (_empty_parts(x, scan.parts) for x in (B, C))
    grad_A = A.new_empty(b, *A.shape)
    grad_D, grad_bias = A.new_empty(b, d), A.new_empty(b, d)
    if grad_last_state is not None:
        grad_last_state = grad_last_state.contiguous()
    scan.saved = pointer(saved)
    scan.grad_y, scan.grad_u, scan.grad_delta = map(Strided.of, (grad_y, grad_u, grad_delta))
    if grad_z is not None:
        scan.grad_z = Strided.of(grad_z)
    scan.grad_B, scan.grad_C = Strided.of(grad_B[0]), Strided.of(grad_C[0])
    scan.grad_B_part, scan.grad_C_part = grad_B.stride(0), grad_C.stride(0)
    scan.grad_last_state = pointer(grad_last_state)
    scan.grad_A, scan.grad_D, scan.grad_bias = map(pointer, (grad_A, grad_D, grad_bias))
    library.call("selective_scan_backward", scan)
    return (
        grad_u,
        grad_delta,
        grad_A.sum(0),
        _sum_parts(grad_B),
        _sum_parts(grad_C),
        None if D is None else grad_D.sum(0),
        grad_z,
        None if delta_bias is None else grad_bias.sum(0),
    )


_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def _prepare(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> _Inputs:
    """The inputs in memory that the C code can read, copied only where necessary."""
    return (
        readable(u),
        readable(delta),
        A.contiguous(),
        readable(B),
        readable(C),
        None if D is None else D.contiguous(),
        None if z is None else readable(z),
        None if delta_bias is None else delta_bias.contiguous(),
    )


def _describe(
    library: NativeLibrary,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> _Scan:
    """The arguments as a C structure; it points to the tensors' memory, so they must outlive it."""
    b, d, length = u.shape
    scan = _Scan(batch=b, channels=d, groups=B.shape[1], states=A.shape[1], length=length)
    scan.softplus, scan.reverse, scan.threads = softplus, reverse, torch.get_num_threads()
    blocks = -(-(d // scan.groups) // library.functions.selective_scan_lanes())
    # As few parts as keep all threads busy: each holds sums of its own for the gradients of B and C.
    scan.parts = min(blocks, -(-scan.threads // (b * scan.groups)))
    scan.u, scan.delta, scan.B, scan.C = map(Strided.of, (u, delta, B, C))
    if z is not None:
        scan.z = Strided.of(z)
    scan.A, scan.D, scan.delta_bias = map(pointer, (A, D, delta_bias))
    return scan


def _empty_parts(x: Tensor, parts: int) -> Tensor:
    """Memory for `parts` tensors laid out as `x`."""
    if x.stride(-2) == 1 and x.shape[-2] > 1:
        b, g, n, length = x.shape
        return x.new_empty(parts, b, length, g, n).permute(0, 1, 3, 4, 2)
    return x.new_empty(parts, *x.shape)


def _sum_parts(x: Tensor) -> Tensor:
    return x[0] if x.shape[0] == 1 else x.sum(0)


@checked("selective_scan")
def _compare(library: NativeLibrary) -> Pairs:
    yield from compare(partial(forward, library), partial(backward, library))
    yield from _continued(library)


def _continued(library: NativeLibrary) -> Pairs:
    """A scan in two parts, the second from the state after the first, and in one."""
    u, delta, A, B, C, D, z, bias = example_inputs()
    state, parts = torch.zeros_like(A)[None], []
    for steps in (slice(0, 20), slice(20, None)):
        tensors = (u[..., steps], delta[..., steps], A, B[..., steps], C[..., steps], D, z[..., steps], bias)
        y, state, _ = forward(library, *tensors, True, False, False, first_state=state)
        parts.append(y)
    y, last, _ = segment_scan.forward(u, delta, A, B, C, D, z, bias, True, False, False)
    yield torch.cat(parts, -1), y
    yield state, last
