"""The network under check, and how a check ends."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nnunet_ext.networks.outputs import has_switch, switch_deep_supervision


class Failure(Exception):
    """A check that does not hold.

    Args:
        reason: What is wrong.
        remedy: What would mend it.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


class Skipped(Exception):
    """A check that does not apply, with the reason."""


@dataclass(frozen=True)
class Subject:
    """A network on one setting.

    Attributes:
        name: Name for messages.
        build: Function from deep supervision, on or off, to the network.
        patch_size: Sizes of the images in voxels.
        input_channels: Channels of the images.
        num_classes: Number of logits.
        lower_outputs: Whether it has several outputs under deep supervision.
        scales: Sizes of the outputs relative to the patch that the trainer's targets have; None: not known.
        device: Type of the device.
        idle: Endings of the names of parameters whose gradients may be 0, such as biases before a norm.
    """

    name: str
    build: Callable[[bool], nn.Module]
    patch_size: tuple[int, ...]
    input_channels: int = 1
    num_classes: int = 3
    lower_outputs: bool = True
    scales: tuple[tuple[float, ...], ...] | None = None
    device: str = "cpu"
    idle: tuple[str, ...] = ("bias",)

    def network(self, deep_supervision: bool = False) -> nn.Module:
        """The network with weights of a fixed seed; a few-shot network has seen an example of each class."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = self.build(deep_supervision and self.lower_outputs).to(self.device)
            if hasattr(network, "set_support"):
                self._show(network)
        return network

    def images(self, batch_size: int = 2, seed: int = 1) -> Tensor:
        """Random images."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(batch_size, self.input_channels, *self.patch_size, generator=generator)
        return images.to(self.device)

    def switch(self, network: nn.Module, enabled: bool) -> None:
        """Switches deep supervision, as the trainer does."""
        if not has_switch(network):
            raise Skipped("the trainer switches its network's deep supervision itself, which its training checks")
        switch_deep_supervision(network, enabled)

    def _show(self, network: nn.Module) -> None:
        size = self.patch_size[-2:]
        masks = torch.zeros(2, self.num_classes - 1, *size, device=self.device)
        masks[..., : size[0] // 2, min(2, size[1] - 1) :] = 1
        cast(Any, network).set_support(torch.randn(2, self.input_channels, *size).to(self.device), masks)


def outputs_of(network: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """A network's outputs as a list."""
    result = network(x)
    return list(result) if isinstance(result, (list, tuple)) else [result]


def require_close(actual: Tensor, expected: Tensor, tolerance: float, reason: str, remedy: str) -> None:
    """Raises a `Failure` unless the largest difference, relative to the largest expected value, is small."""
    if actual.shape != expected.shape:
        raise Failure(f"{reason}: shapes {tuple(actual.shape)} and {tuple(expected.shape)}", remedy)
    error = ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
    if not error <= tolerance:
        raise Failure(f"{reason} by {error:.1e}, more than {tolerance:.0e}", remedy)


def rounding(network: nn.Module, x: Tensor) -> float:
    """The error of float32 against float64, relative to the largest value: levels of few voxels magnify it."""
    exact, result = outputs_of(copy.deepcopy(network).double(), x.double()), outputs_of(network, x)
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in zip(result, exact, strict=True))


def without_dropout(network: nn.Module) -> nn.Module:
    """The network itself, whose dropout no longer drops anything."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    return network
