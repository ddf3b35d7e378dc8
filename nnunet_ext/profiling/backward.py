"""Backward passes on fake tensors of a device that does not exist here.

PyTorch's engine asks the device of every gradient for its streams, even for fake tensors, so it cannot run for CUDA
without a GPU. This one runs the same nodes, in the same order, in Python.
"""

import heapq
from itertools import count
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.utils.torch_private import forget_node, input_metadata, sequence_number


def run_backward(loss: Tensor) -> None:
    """`loss.backward()` of a scalar: adds gradients to the `grad` of the leaves and frees the graph on the way.

    Nodes run in the engine's order: the latest first, each once all of its gradients have arrived, leaves at once.
    Hooks of tensors and nodes are not called. The caller must hold nothing but `loss`, whose graph is detached;
    otherwise the tensors that the graph saves stay alive.
    """
    root: Any = loss.grad_fn
    run = _Run(root, torch.ones_like(loss))
    loss.detach_()
    del root
    with torch.no_grad():
        while run.ready:
            run.next()


class _Run:
    """The nodes that have not run, and the gradients that have reached them."""

    def __init__(self, root: Any, gradient: Tensor) -> None:
        self.users = _count_users(root)
        self.received: dict[Any, list[Tensor | None]] = {root: [gradient]}
        self.ready: list[tuple[int, int, Any]] = []
        self._order = count()
        self._push(root)

    def next(self) -> None:
        _, _, node = heapq.heappop(self.ready)
        del self.users[node]
        results = _run(node, self.received.pop(node, []))
        forget_node(node)
        del node  # Only nodes that use it could still hold it, and they have run: this frees its saved tensors.
        for gradient, target, index in results:
            if gradient is not None:
                _receive(self.received, target, index, gradient)
            self.users[target] -= 1
            if self.users[target] == 0:
                self._push(target)

    def _push(self, node: Any) -> None:
        heapq.heappush(self.ready, (-sequence_number(node), next(self._order), node))


def _count_users(root: Any) -> dict[Any, int]:
    """Edges into every node of a graph."""
    users = {root: 0}
    stack = [root]
    while stack:
        for target, _ in stack.pop().next_functions:
            if target is not None:
                if target not in users:
                    users[target] = 0
                    stack.append(target)
                users[target] += 1
    return users


def _receive(received: dict, target: Any, index: int, gradient: Tensor) -> None:
    inputs = input_metadata(target)
    meta = inputs[index]
    if gradient.shape != meta.shape:
        gradient = gradient.sum_to_size(meta.shape)
    if gradient.dtype != meta.dtype:
        gradient = gradient.to(meta.dtype)
    slots = received.setdefault(target, [None] * len(inputs))
    slots[index] = gradient if slots[index] is None else slots[index] + gradient


def _run(node: Any, gradients: list[Tensor | None]) -> list[tuple[Tensor | None, Any, int]]:
    """Gradients that a node returns, each with the node, and its input, that receives it."""
    edges = [(target, index) for target, index in node.next_functions if target is not None]
    if all(gradient is None for gradient in gradients):
        return [(None, *edge) for edge in edges]
    if hasattr(node, "variable"):  # a leaf
        (gradient,) = gradients
        assert gradient is not None
        _accumulate(node.variable, gradient)
        return []
    metadata = input_metadata(node)
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        # Whether the node expects None or zeros cannot be read; these zeros take no memory.
        zipped = zip(gradients, metadata, strict=True)
        results = _as_tuple(node.apply(*(_zeros(meta) if gradient is None else gradient for gradient, meta in zipped)))
        needed = list(node.needs_input_grad)  # one entry per argument, tensor or not
    else:
        results = _as_tuple(node(*gradients))
        needed = [target is not None for target, _ in node.next_functions]
    chosen = (result for result, need in zip(results, needed, strict=True) if need)
    return [(result, *edge) for result, edge in zip(chosen, edges, strict=True)]


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    """Adds a gradient to a leaf's; the first one is taken as it is if it lies in memory as the leaf does."""
    if leaf.grad is not None:
        leaf.grad = leaf.grad + gradient
        return
    axes = zip(leaf.shape, leaf.stride(), gradient.stride(), strict=True)
    fits = all(size == 1 or ours == theirs for size, ours, theirs in axes)
    leaf.grad = gradient if fits else torch.empty_like(leaf).copy_(gradient)


def _as_tuple(results: Any) -> tuple:
    return results if isinstance(results, tuple) else (results,)


def _zeros(meta: Any) -> Tensor:
    return torch.zeros((), dtype=meta.dtype, device=meta.device).expand(meta.shape)
