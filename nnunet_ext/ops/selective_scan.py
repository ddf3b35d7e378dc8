"""The selective scan of Mamba: the public function, its checks, and the choice of a backend."""

import torch
from torch import Tensor

from nnunet_ext.ops import mamba_ssm_scan, triton_support
from nnunet_ext.ops.native import library_for, native_library, refusal
from nnunet_ext.ops.portable import recorded_loop
from nnunet_ext.ops.portable_scan import portable_scan
from nnunet_ext.ops.scan_operator import selective_scan_operator
from nnunet_ext.ops.tracing import is_traced
from nnunet_ext.utils.torch_private import in_function_transform

BACKENDS = ("mamba_ssm", "triton", "cpu", "torch")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Linear recurrence over time with input-dependent coefficients.

    delta <- softplus(delta + delta_bias), h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, y_t = C_t . h_t + D u_t,
    y <- y * silu(z).

    Computed in float32 whatever the inputs (in float64 if u is), with gradients for every tensor and in O(b d l)
    memory: states are recomputed backwards. Without gradients nothing is saved. Fastest where channels are adjacent in
    memory, that is on views ``x.transpose(1, 2)`` of (b, l, d) tensors.

    Args:
        u: Input.
        delta: Step sizes, before bias and softplus.
        A: Rates, real; usually negative.
        B: Input weights of the states: for all channels, per group of neighbouring channels, or constant in time and
            per channel (whose gradient takes O(b d n l) memory).
        C: Output weights of the states, likewise.
        D: Weight of the direct path.
        z: Gate.
        delta_bias: Added to delta.
        delta_softplus: Whether softplus is applied to delta.
        return_last_state: Whether to return the state after the last step too.
        reverse: Whether to scan from the last position to the first; the last state is then that after position 0.
        backend: Name of a backend. None chooses by device and installation: on CUDA `mamba_ssm` (its own kernels, but
            not if the last state is returned, for which they have no gradient), else `triton`, or `torch` where that
            cannot start; on the CPU `cpu` (the C extension, or `torch` where it was not built); elsewhere and in
            double precision `torch` (segments in plain PyTorch).

    Shape:
        u, delta, z (b, d, l); A (d, n); B, C (b, n, l), (b, g, n, l) or, constant in time, (d, n); D, delta_bias (d,);
        result (b, d, l) in the type of u, last state (b, d, n). An empty batch gives an empty result.

    Raises:
        ValueError: for shapes that do not fit together, or complex numbers.
        RuntimeError: for an unknown or unusable backend (the message says what is missing and what is available), or
            under a transform of torch.func.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023; signature and
    meaning of mamba_ssm's `selective_scan_fn`.
    """
    _check(u, delta, A, B, C, D, z, delta_bias)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    constant = 2 in (B.ndim, C.ndim)
    B, C = (_grouped(x, u, per_channel=constant) for x in (B, C))
    tensors = [None if x is None else x.to(dtype) for x in (u, delta, A, B, C, D, z, delta_bias)]
    if in_function_transform():
        raise RuntimeError(
            "nnunet_ext::selective_scan has no rule for the transforms of torch.func (grad, vmap, jvp): use "
            "torch.autograd.grad, or selective_scan_reference for short sequences"
        )
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if u.shape[0] == 0:
        return (u.clone(), u.new_zeros(0, *A.shape, dtype=dtype)) if return_last_state else u.clone()
    loop = recorded_loop()
    if loop is not None:
        y, state = portable_scan(tensors, delta_softplus, reverse, loop)
        return (y.to(u.dtype), state) if return_last_state else y.to(u.dtype)
    chosen = _choose(backend, u.device.type, dtype, is_traced(u), return_last_state and differentiated)
    if chosen == "mamba_ssm":
        y, state = mamba_ssm_scan.scan(tensors, delta_softplus, reverse)
    else:
        y, state, _ = selective_scan_operator(*tensors, delta_softplus, reverse, differentiated, chosen)
    y = y.to(u.dtype)
    return (y, state) if return_last_state else y


def describe_backend(device_type: str, compiled: bool = False) -> str:
    """Description, for logs, of the backend of float32 scans on a device, in eager mode or under torch.compile."""
    chosen = _choose(None, device_type, torch.float32, compiled)
    if chosen == "mamba_ssm":
        return "mamba_ssm (its CUDA kernels)"
    if chosen == "triton":
        return "triton (compiled at first use)"
    library = library_for("selective_scan") if chosen == "cpu" else None
    if library is not None:
        number = torch.get_num_threads()
        threads = f"{number} thread{'s' * (number > 1)}" if library.openmp else "one thread, built without OpenMP"
        return f"cpu (C extension, {library.instruction_set}, {threads})"
    if device_type != "cpu":
        return "torch (segments in plain PyTorch; slow: no kernel for this device)"
    reason = (
        f"is refused: {refusal()}" if refusal() else "was not built" if native_library() is None else "failed its check"
    )
    return f"torch (segments in plain PyTorch; the C extension {reason})"


def _grouped(x: Tensor, u: Tensor, per_channel: bool) -> Tensor:
    """B or C as (b, g, n, l), a view where groups need not be repeated; with `per_channel` g is d."""
    b, d, length = u.shape
    if x.ndim == 2:
        x = x[None, :, :, None].expand(b, -1, -1, length)
    elif x.ndim == 3:
        x = x[:, None]
    if per_channel and x.shape[1] == 1:
        return x.expand(-1, d, -1, -1)
    return x.repeat_interleave(d // x.shape[1], 1) if per_channel and x.shape[1] != d else x


def _choose(
    backend: str | None, device_type: str, dtype: torch.dtype, compiled: bool, state_gradient: bool = False
) -> str:
    if backend is not None:
        reason = _why_unusable(backend, device_type, dtype)
        if reason is not None:
            usable = [name for name in BACKENDS if _why_unusable(name, device_type, dtype) is None]
            raise RuntimeError(f"backend {backend!r} cannot be used here: {reason}; available: {', '.join(usable)}")
        return backend
    if dtype == torch.float64:
        return "torch"
    if device_type == "cuda":
        if compiled:  # torch.compile cannot trace mamba_ssm's kernels, and needs Triton itself
            return "triton" if triton_support.MISSING is None else "torch"
        if not state_gradient and mamba_ssm_scan.why_unusable() is None:
            return "mamba_ssm"
        return "triton" if triton_support.why_unusable() is None else "torch"
    return "cpu" if device_type == "cpu" else "torch"


def _why_unusable(backend: str, device_type: str, dtype: torch.dtype) -> str | None:
    if backend not in BACKENDS:
        return f"it is unknown (known: {', '.join(BACKENDS)})"
    if backend in ("mamba_ssm", "triton"):
        if device_type != "cuda" and not (backend == "triton" and triton_support.INTERPRETED):
            return f"it needs CUDA tensors, these are on {device_type}"
        if dtype == torch.float64:
            return "it computes in single precision, these tensors are float64"
        if backend == "mamba_ssm":
            return mamba_ssm_scan.why_unusable()
        return triton_support.MISSING
    if backend == "cpu" and device_type != "cpu":
        return f"it needs tensors on the CPU, these are on {device_type}"
    return None


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    given = {name: x for name, x in zip(names, (u, delta, A, B, C, D, z, delta_bias), strict=True) if x is not None}
    for name, x in given.items():
        if x.is_complex():
            raise ValueError(
                f"`{name}` is complex ({x.dtype}): complex numbers are not supported, the scan's tensors are real"
            )
    if u.ndim != 3:
        raise ValueError(f"`u` must have the shape (b, d, l), got {tuple(u.shape)}")
    b, d, length = u.shape
    if A.ndim != 2 or A.shape[0] != d:
        raise ValueError(f"`A` must have the shape (d, n) with d={d} as in `u`, got {tuple(A.shape)}")
    n = A.shape[1]
    if 0 in (d, length, n):
        raise ValueError(f"`u` {tuple(u.shape)} and `A` {tuple(A.shape)} must not be empty but for the batch")
    for name in given.keys() & {"delta", "z"}:
        if given[name].shape != u.shape:
            raise ValueError(f"`{name}` must have the shape of `u`, {tuple(u.shape)}, got {tuple(given[name].shape)}")
    for name in given.keys() & {"D", "delta_bias"}:
        if given[name].shape != (d,):
            raise ValueError(f"`{name}` must have the shape ({d},), got {tuple(given[name].shape)}")
    groups = []
    for name, x in (("B", B), ("C", C)):
        if x.ndim == 2 and x.shape == (d, n):
            continue
        number = x.shape[1] if x.ndim == 4 else 1
        if x.ndim not in (3, 4) or (x.shape[0], *x.shape[-2:]) != (b, n, length) or number == 0 or d % number:
            raise ValueError(
                f"`{name}` must have the shape ({b}, {n}, {length}), ({d}, {n}) if it is constant in time, or "
                f"({b}, g, {n}, {length}) with g dividing {d}, got {tuple(x.shape)}"
            )
        groups.append(number)
    if len(set(groups)) > 1:
        raise ValueError(f"`B` {tuple(B.shape)} and `C` {tuple(C.shape)} must have the same number of groups")
    devices = {x.device for x in given.values()}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}")
