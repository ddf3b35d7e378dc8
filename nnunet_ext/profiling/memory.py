"""Memory of a training step, traced operator by operator on fake tensors."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.profiling.backward import run_backward
from nnunet_ext.profiling.fake_tensors import fake_tensors_on
from nnunet_ext.profiling.live_memory import LiveMemory, storage_bytes
from nnunet_ext.utils.fake_modules import fake_copy
from nnunet_ext.utils.torch_private import tree_leaves


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step: total = parameters + optimiser_state + max(saved, gradients) + transient.

    Attributes:
        parameters: Parameters and buffers.
        gradients: Gradients of all parameters, before the optimiser's step.
        optimiser_state: Tensors that the optimiser keeps from step to step.
        saved: Tensors alive after the forward pass and the loss: those saved for the backward pass, each storage
            counted once, the batch and the outputs.
        transient: Excess of the peak over the larger of the two steady states, after the loss and before the
            optimiser's step: temporary tensors and gradients in flight.
    """

    parameters: int
    gradients: int
    optimiser_state: int
    saved: int
    transient: int

    @property
    def total(self) -> int:
        """Peak memory of the step."""
        return self.parameters + self.optimiser_state + max(self.saved, self.gradients) + self.transient


@dataclass(frozen=True)
class Step:
    """A training step to be traced.

    Attributes:
        network: The network.
        optimiser: Optimiser of the network's parameters.
        batch: Tensors that the step holds from its start.
        loss: Function of the batch that returns the scalar loss and whatever else the step holds until its end.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    batch: Sequence[Tensor]
    loss: Callable[..., tuple[Tensor, Any]]


def trace_step(
    make: Callable[[], Step], device: str = "cuda", autocast: bool = True, limit: int | None = None
) -> TrainingMemory:
    """Traces the memory of a training step: forward pass, loss, backward pass, optimiser.

    Every operator runs on fake tensors: custom operators by their fake implementation, checkpointed regions a second
    time in the backward pass. Memory that kernels allocate internally is not included, such as the workspaces of
    cuDNN.

    Args:
        make: Function that builds the step; called within `fake_tensors_on`.
        device: Device whose operators run: ``"cuda"``, which needs no GPU, or ``"cpu"``.
        autocast: Whether forward pass and loss run under autocast to float16, as nnU-Net trains on CUDA.
        limit: Bytes; the trace ends as soon as the step exceeds them.

    Raises:
        LimitExceeded: if the step exceeds `limit`.
    """
    with fake_tensors_on(device):
        step = make()
        live = LiveMemory(limit)
        parameters = live.add([*step.network.parameters(), *step.network.buffers()])
        optimiser_state = live.add(_optimiser_state(step))
        at_rest = parameters + optimiser_state
        live.add(step.batch)
        with live:
            with torch.autocast(device, torch.float16) if autocast else nullcontext():
                loss, held = step.loss(*step.batch)
            held = [leaf.detach() for leaf in tree_leaves(held) if isinstance(leaf, Tensor)]
            saved = live.now - at_rest
            run_backward(loss)
            del loss, held
            gradients = live.now - at_rest
            step.optimiser.step()
    gradients -= storage_bytes(step.batch)
    transient = live.peak - at_rest - max(saved, gradients)
    return TrainingMemory(parameters, gradients, optimiser_state, saved, transient)


def trace_network(
    network: nn.Module,
    input_channels: int,
    patch_size: Sequence[int],
    batch_size: int,
    optimiser: Callable[..., torch.optim.Optimizer] | None = None,
    *,
    device: str = "cuda",
    autocast: bool = True,
    limit: int | None = None,
) -> TrainingMemory:
    """Traces a step of any network as `trace_step` does, with the mean of its outputs as loss.

    Args:
        network: The network; it is not changed, and its weights are not read.
        input_channels: Channels of the input.
        patch_size: Spatial size in voxels.
        batch_size: Samples in a batch.
        optimiser: Function from parameters to an optimiser; None: nnU-Net's SGD with momentum.
        device: As in `trace_step`.
        autocast: As in `trace_step`.
        limit: As in `trace_step`.

    Raises:
        LimitExceeded: if the step exceeds `limit`.
    """

    def make() -> Step:
        twin = fake_copy(network)
        parameters = list(twin.parameters())
        batch = torch.empty(batch_size, input_channels, *patch_size)
        return Step(twin, (optimiser or _sgd)(parameters), (batch,), lambda x: _mean(twin(x)))

    return trace_step(make, device=device, autocast=autocast, limit=limit)


def _sgd(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.99, nesterov=True)


def _mean(outputs: Any) -> tuple[Tensor, Any]:
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return torch.stack([tensor.float().mean() for tensor in tensors]).sum(), outputs


def _optimiser_state(step: Step) -> list[Tensor]:
    """The optimiser's state after a first step."""
    for group in step.optimiser.param_groups:
        # On a GPU the optimiser steps all parameters at once; for fake tensors it would step them one by one.
        group["foreach"] = next(step.network.parameters()).device.type == "cuda"
    for parameter in step.network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    step.optimiser.step()
    step.optimiser.zero_grad(set_to_none=True)
    return [leaf for leaf in tree_leaves(dict(step.optimiser.state)) if isinstance(leaf, Tensor)]
