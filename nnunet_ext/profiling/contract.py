"""The contract of a trainer whose training step can be traced, and so planned."""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class TraceableTrainer(Protocol):
    """A trainer that defines its training step; planning traces what it defines.

    `nnunet_ext.training.PluginTrainer` implements it with nnU-Net's step, batches and loss. Trainers without these
    methods, nnU-Net's own for instance, are traced by `NNUNetStep`.
    """

    def batch_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Returns the scalar loss of a batch, and whatever else `train_step` holds until its end."""
        ...

    def example_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns a batch in the shapes and types that `train_step` gets, with arbitrary values."""
        ...

    def epoch_tensors(self) -> list[Tensor]:
        """Returns the tensors that an epoch keeps on the device besides its batches."""
        ...


class NNUNetStep:
    """The training step of nnU-Net's own trainer, as a `TraceableTrainer`.

    Args:
        trainer: An nnU-Net trainer with network and loss.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def batch_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        return nnunet_batch_loss(self._trainer, batch)

    def example_batch(self, batch_size: int) -> dict[str, Any]:
        return nnunet_example_batch(self._trainer, batch_size)

    def epoch_tensors(self) -> list[Tensor]:
        return []


def nnunet_batch_loss(trainer: Any, batch: dict[str, Any]) -> tuple[Tensor, Any]:
    """The loss of a batch and the network's output, as in nnU-Net's `train_step`."""
    output = trainer.network(batch["data"])
    return trainer.loss(output, batch["target"]), output


def nnunet_example_batch(trainer: Any, batch_size: int) -> dict[str, Tensor | list[Tensor]]:
    """Data and target in the shapes and types of nnU-Net's data loaders."""
    patch = trainer.configuration_manager.patch_size
    data = torch.empty(batch_size, trainer.num_input_channels, *patch)
    scales = trainer._get_deep_supervision_scales() if trainer.enable_deep_supervision else None
    regions = len(trainer.label_manager.foreground_regions) if trainer.label_manager.has_regions else 0
    targets = [
        torch.empty(
            (batch_size, regions or 1, *(round(size * part) for size, part in zip(patch, scale, strict=True))),
            dtype=torch.bool if regions else torch.int16,
        )
        for scale in scales or [[1.0] * len(patch)]
    ]
    return {"data": data, "target": targets if scales else targets[0]}
