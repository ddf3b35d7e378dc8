"""A tiny scan on which a backend is compared with plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

from nnunet_ext.ops import segment_scan
from nnunet_ext.ops.self_check import Pairs, example

ExampleInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def example_inputs(device: str | torch.device = "cpu") -> ExampleInputs:
    """u, delta, A, B, C, D, z and the bias of delta, of 37 steps, with adjacent channels."""
    b, d, n, length = 1, 18, 5, 37

    def tensor(*shape: int, seed: int) -> Tensor:
        return example(*shape, seed=seed, device=device)

    u, delta, z = (tensor(b, length, d, seed=s).transpose(1, 2) for s in range(3))
    B, C = (tensor(b, 1, length, n, seed=s).transpose(2, 3) for s in (5, 6))
    return u, delta, -1 - tensor(d, n, seed=4).abs(), B, C, tensor(d, seed=7), z, tensor(d, seed=8)


def compare(
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor | None, ...]],
    device: str | torch.device = "cpu",
) -> Pairs:
    """Results, last states and all gradients of a backend and of `segment_scan`, in both directions.

    Args:
        forward: The backend's function, as `nnunet_ext.ops.scan_operator` calls it.
        backward: The backend's backward pass, likewise.
        device: Device on which it computes.
    """
    inputs = example_inputs(device)
    u, _, A, *_ = inputs
    grad_y = example(u.shape[0], u.shape[2], u.shape[1], seed=3, device=device).transpose(1, 2)
    grad_state = example(u.shape[0], *A.shape, seed=9, device=device)
    for reverse in (False, True):
        found, expected = (run(*inputs, True, reverse, True) for run in (forward, segment_scan.forward))
        yield from zip(found[:2], expected[:2], strict=True)
        gradients, reference = (
            run(grad_y, grad_state, *inputs, kept[2], True, reverse)
            for run, kept in ((backward, found), (segment_scan.backward, expected))
        )
        for x, y in zip(gradients, reference, strict=True):
            assert x is not None  # every input was given
            assert y is not None
            yield x, y
