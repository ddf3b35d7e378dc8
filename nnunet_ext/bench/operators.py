"""The convolutions and matrix products of a call alone: a lower bound that no optimisation around them can improve.

They are recorded below autograd, where PyTorch dispatches them to a device, so that those of custom autograd functions,
`einsum`, linear layers and checkpointed regions are all included, each with its actual shapes and strides; the caller
is responsible for the warm-up. Fourier transforms, norms, activations, copies and the optimiser are not included: a
step is measured against its products alone. Nor is axial attention between its projections, if the C extension computes
it: all of it counts as overhead, including its products.

EM-Net's selective scan is not a product either, although Mamba is impossible without it. It is therefore not in
`PRODUCTS` and counts as overhead there; `SCANS` lists it separately, with the preceding short convolution (including
its activation), so that a step can also be measured against products and scans together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import nnunet_ext.ops.winograd  # noqa: F401  registers the operators of PRODUCTS and, with its package, of SCANS
from nnunet_ext.utils.torch_private import TorchDispatchMode, tree_leaves, tree_map_only

_aten, _ours = torch.ops.aten, torch.ops.nnunet_ext
PRODUCTS = (
    _aten.convolution,
    _aten.convolution_backward,
    _aten.mkldnn_convolution,
    _aten.mm,
    _aten.addmm,
    _aten.bmm,
    _aten.baddbmm,
    _aten.mv,
    _aten.addmv,
    _aten.dot,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_flash_attention_backward,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_efficient_attention_backward,
    _aten._scaled_dot_product_cudnn_attention,
    _aten._scaled_dot_product_cudnn_attention_backward,
    _ours.winograd_convolution,
    _ours.winograd_kernel_gradient,
)
"""Convolutions and matrix products as dispatched to a device, forward and backward, including fused attention, whose
softmax cannot be separated, and convolutions by Winograd's method, whose transforms cannot."""
SCANS = (
    _ours.selective_scan,
    _ours.selective_scan_backward,
    _ours.causal_conv1d,
    _ours.causal_conv1d_backward,
)
"""Operators of Mamba besides its linear layers."""


@dataclass(frozen=True)
class _Like:
    """A tensor's shape, strides, type and device, without its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, x: Tensor) -> "_Like":
        return cls(tuple(x.shape), x.stride(), x.dtype, x.device)

    def random(self) -> Tensor:
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        memory = torch.randn(max(span, 1), device=self.device).to(self.dtype)
        return memory.as_strided(self.shape, self.strides)


@dataclass(frozen=True)
class Call:
    """An operator and its arguments, tensors replaced by their shapes, strides and types.

    Operators in `SCANS` keep their tensors, because with random decays the states of a scan would overflow.
    """

    operator: Any
    arguments: tuple
    keywords: dict

    @property
    def scans(self) -> bool:
        """Whether it is one of `SCANS`."""
        return self.operator.overloadpacket in SCANS

    @property
    def tensors(self) -> list[_Like]:
        return [x for x in tree_leaves((self.arguments, self.keywords)) if isinstance(x, _Like)]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket in (*PRODUCTS, *SCANS):
            keep = torch.clone if func.overloadpacket in SCANS else _Like.of
            self.calls.append(Call(func, *tree_map_only(Tensor, keep, (args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def record(call: Callable[[], object]) -> list[Call]:
    """The `PRODUCTS` and `SCANS` that `call` runs, in order, including those of its backward pass."""
    with _Recorder() as recorder:
        call()
    return recorder.calls


def replay(calls: list[Call]) -> Callable[[], None]:
    """A function that runs recorded operators one after the other, on random tensors with the recorded layouts.

    Tensors of the same layout share their memory, so that the function needs little more memory than the call. They are
    more likely to be in the cache than those of the call, so the time is a lower bound for the operators in the call.
    """
    memory = {like: like.random() for call in calls for like in call.tensors}
    ready = [(c.operator, *tree_map_only(_Like, memory.__getitem__, (c.arguments, c.keywords))) for c in calls]

    @torch.no_grad()
    def run() -> None:
        for operator, arguments, keywords in ready:
            operator(*arguments, **keywords)

    return run
