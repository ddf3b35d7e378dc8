"""Axial self-attention between tokens along one axis of a map, whose features are another axis.

Source: Huang et al., "SASAN: Spectrum-Axial Spatial Approach Networks for Medical Image Segmentation".
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.ops.axial_attention import mix, mix_backward, mix_reference, native_attention
from nnunet_ext.ops.once import differentiable_once
from nnunet_ext.ops.portable import is_portable
from nnunet_ext.utils.torch_private import in_function_transform

_MAX_HEADS = 16
_CHUNK_ELEMENTS = 1 << 20
"""Values of q, k and v (without the C extension: attention scores) processed at a time on the CPU, so that they stay in
the cache."""
_MAX_BATCH = 32768
"""Fused attention kernels put the batch on a grid axis of at most 65535 blocks."""


def default_heads(embedding: int) -> int:
    """The largest divisor of `embedding` that is at most 16."""
    return max(h for h in range(1, _MAX_HEADS + 1) if embedding % h == 0)


class AxialAttention(nn.Module):
    """Multi-head self-attention between tokens along one axis, whose features are another axis.

    softmax(q k^T (E/h)^-0.5) v for each of h heads, then the output projection; q, k, v = W t without bias.

    Args:
        embedding: E, the length of the axis that serves as features.
        heads: h, a divisor of E.

    Shape:
        (B, L, E) -> (B, L, E)

    Raises:
        ValueError: if `heads` does not divide `embedding`.
    """

    def __init__(self, embedding: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or embedding % heads:
            divisors = [h for h in range(1, embedding + 1) if embedding % h == 0]
            raise ValueError(f"`heads`={heads} must divide the axis length {embedding}; its divisors: {divisors}")
        self.heads = heads
        self.qkv = nn.Linear(embedding, 3 * embedding, bias=False)
        self.out = nn.Linear(embedding, embedding)

    def forward(self, tokens: Tensor) -> Tensor:
        return attend(tokens, self.heads, self.qkv.weight, self.out.weight, self.out.bias)


def attend_reference(tokens: Tensor, heads: int, qkv: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
    """Naive reference implementation of `attend`, which computes and keeps the attention matrix."""
    mixed = mix_reference(_projected(tokens[:, :, None], qkv, heads))
    return F.linear(mixed.reshape(tokens.shape), out_weight, out_bias)


def attend(tokens: Tensor, heads: int, qkv: Tensor, out_weight: Tensor, out_bias: Tensor) -> Tensor:
    """Multi-head self-attention that never allocates a tensor of size tokens x tokens.

    Shape:
        tokens and result (B, L, E), qkv (3E, E), out_weight (E, E), out_bias (E,).
    """
    batch, length, embedding = tokens.shape
    projected = F.linear(tokens, qkv).view(batch, length, 3, heads, embedding // heads)
    q, k, v = projected.permute(2, 0, 3, 1, 4)
    if is_portable():  # its number of sequences is open
        mixed = F.scaled_dot_product_attention(q, k, v)
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, embedding), out_weight, out_bias)
    parts = [
        F.scaled_dot_product_attention(*part) for part in zip(*(i.split(_MAX_BATCH) for i in (q, k, v)), strict=True)
    ]
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return F.linear(mixed.transpose(1, 2).reshape(batch, length, embedding), out_weight, out_bias)


def attend_axes(maps: Tensor, axes: Sequence[int], attentions: Sequence[AxialAttention]) -> Tensor:
    """Sum of the attentions along each of `axes`; the last axis of `maps` is the embedding.

    Shape:
        (..., E) -> (..., E)
    """
    if _use_chunks(maps):
        with torch.autocast("cpu", enabled=False):
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32)).contiguous()
            weights = [w for a in attentions for w in (a.qkv.weight, a.out.weight, a.out.bias)]
            return _ChunkedAttention.apply(maps, tuple(axes), tuple(a.heads for a in attentions), *weights)
    total: Tensor | None = None
    for axis, attention in zip(axes, attentions, strict=True):
        tokens = maps.movedim(axis, -2)
        mixed = attention(tokens.flatten(0, -3)).view(tokens.shape).movedim(-2, axis)
        total = mixed if total is None else total + mixed
    if total is None:
        raise ValueError("`axes` must name at least one axis")
    return total


def _use_chunks(maps: Tensor) -> bool:
    # A trace records PyTorch's operators, not what is done for each chunk.
    traced = is_portable() or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return maps.device.type == "cpu" and not traced and not in_function_transform()


class _ChunkedAttention(torch.autograd.Function):
    """`attend_axes` on the CPU, some sequences at a time; only the input is saved for the backward pass."""

    @staticmethod
    def forward(ctx, maps, axes, heads, *weights):
        ctx.save_for_backward(maps, *weights)
        ctx.axes, ctx.heads = axes, heads
        total = torch.zeros_like(maps)
        for i, (axis, h) in enumerate(zip(axes, heads, strict=True)):
            qkv, out_weight, out_bias = weights[3 * i : 3 * i + 3]
            for tokens, target in _chunks(maps, total, axis, h):
                mixed = mix(_projected(tokens, qkv, h)).flatten(-2)
                target.add_(F.linear(mixed, out_weight, out_bias))
        return total

    @staticmethod
    @differentiable_once("axial_attention")
    def backward(ctx, *grads):
        maps, *weights = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):  # the caller may still be inside an autocast region
            grad_maps, grad_weights = _gradients(maps, weights, ctx.axes, ctx.heads, grads[0].contiguous())
        return grad_maps, None, None, *grad_weights


def _gradients(
    maps: Tensor, weights: Sequence[Tensor], axes: Sequence[int], heads: Sequence[int], grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the maps and of the weights."""
    grad_maps = torch.zeros_like(maps)
    grad_weights = [torch.zeros_like(w) for w in weights]
    for i, (axis, h) in enumerate(zip(axes, heads, strict=True)):
        qkv, out_weight, _ = weights[3 * i : 3 * i + 3]
        grad_qkv, grad_out_weight, grad_out_bias = grad_weights[3 * i : 3 * i + 3]
        for (tokens, target), (g, _) in zip(
            _chunks(maps, grad_maps, axis, h), _chunks(grad, grad_maps, axis, h), strict=True
        ):
            tokens, g = tokens.contiguous(), g.contiguous()
            mixed, of_qkv = mix_backward(_projected(tokens, qkv, h), (g @ out_weight).unflatten(-1, (h, -1)))
            of_qkv = of_qkv.flatten(-3)
            target.add_(of_qkv @ qkv)
            flat = g.flatten(0, -2)
            grad_qkv.addmm_(of_qkv.flatten(0, -2).T, tokens.flatten(0, -2))
            grad_out_weight.addmm_(flat.T, mixed.reshape(flat.shape))
            grad_out_bias.add_(flat.sum(0))
    return grad_maps, grad_weights


def _projected(tokens: Tensor, qkv: Tensor, heads: int) -> Tensor:
    """(outer, L, inner, E) -> (outer, L, inner, 3, h, E / h)."""
    return F.linear(tokens, qkv).unflatten(-1, (3, heads, -1))


def _chunks(maps: Tensor, other: Tensor, axis: int, heads: int):
    """Pairs of views (outer, L, inner, E) of `maps` and `other`, both contiguous, with L along `axis`."""
    length, embedding = maps.shape[axis], maps.shape[-1]
    outer, inner = maps.shape[:axis].numel(), maps.shape[axis + 1 : -1].numel()
    views = [i.view(outer, length, inner, embedding) for i in (maps, other)]
    per_sequence = 3 * length * embedding
    if native_attention(maps, embedding // heads) is None:
        per_sequence = max(heads * length * length, per_sequence)
    sequences = max(1, _CHUNK_ELEMENTS // per_sequence)
    for pair in zip(*(i.split(max(1, sequences // inner)) for i in views), strict=True):
        yield from zip(*(i.split(sequences, 2) for i in pair), strict=True)
