"""The timed calls: a forward pass as in prediction, and a training step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.bench.setting import Setting
from nnunet_ext.utils.torch_private import tree_leaves

WHATS = ("forward", "training step")
PRECISIONS = ("float32", "autocast")
MODES = ("eager", "compiled")
_CLIP = 12
"""nnU-Net clips gradients to this norm."""


@dataclass(frozen=True)
class Job:
    """A call to measure; picklable, so that another process can measure its memory.

    Attributes:
        network: A name in `nnunet_ext.bench.setting.NETWORKS`.
        setting: Patch, batch and topology.
        what: One of `WHATS`.
        device: Device type.
        precision: ``"float32"``, or ``"autocast"``: float16 on CUDA, as nnU-Net trains there, bfloat16 on the CPU.
        mode: ``"eager"`` or ``"compiled"``.
    """

    network: str
    setting: Setting
    what: str
    device: str = "cpu"
    precision: str = "float32"
    mode: str = "eager"

    def prepare(self) -> Callable[[], object]:
        """The call to measure, with its network and batch already built."""
        training = self.what == "training step"
        network = self.setting.show(self.setting.build(self.network, deep_supervision=training))
        network = network.to(self.device).train(training)
        inputs = self.setting.training_inputs(network) if training else (self.setting.images(1),)
        inputs = tuple(x.to(self.device) for x in inputs)
        run = torch.compile(network) if self.mode == "compiled" else network
        if training:
            step = training_step(network, *inputs, autocast=self._autocast, run=run)
        else:
            step = _forward(run, *inputs, autocast=self._autocast)
        return synchronised(step, self.device)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device) if self.precision == "autocast" else nullcontext()


def synchronised(call: Callable[[], object], device: str) -> Callable[[], object]:
    """`call`, which on a GPU waits until the device has finished."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device)
    if wait is None:
        return call

    def until_done() -> None:
        call()
        wait()

    return until_done


def _forward(run: Callable, images: Tensor, *, autocast: Callable[[], AbstractContextManager]) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad(), autocast():
            return run(images)

    return forward


def training_step(
    network: nn.Module,
    *inputs: Tensor,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    run: Callable[..., Any] | None = None,
) -> Callable[[], object]:
    """Forward pass, mean square of all outputs as the loss, backward pass, and clipping and SGD as in nnU-Net.

    Gradients are freed at the end of a step, so the memory that a step adds includes them.

    Args:
        network: Network in training mode.
        inputs: The batch.
        autocast: Context of forward pass and loss.
        run: The compiled network; None: `network`.
    """
    optimiser = torch.optim.SGD(network.parameters(), 1e-4, momentum=0.99, weight_decay=3e-5, nesterov=True)
    call = network if run is None else run

    def step() -> Tensor:
        with autocast():
            outputs = [y for y in tree_leaves(call(*inputs)) if isinstance(y, Tensor)]
            loss = torch.stack([y.float().square().mean() for y in outputs]).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    return step
