"""Training of FAF-Net from labels: nnU-Net's batches are the queries, with new support slices every epoch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.fewshot.bank import class_labels
from nnunet_ext.training.faf_net import SEED, FAFNetBaseTrainer


class FAFNetLabelTrainer(FAFNetBaseTrainer):
    """Episodes from the labels of the training fold.

    Each epoch draws support slices of every class; the slices of nnU-Net's batches are the queries. The loss is
    nnU-Net's on the queries plus FAF-Net's alignment and prototype losses.

    Subclasses set `network_settings` and may change `max_slices`.
    """

    max_slices = 16
    """Number of random query slices of a patch; with a ResNet-101 more would take gigabytes."""

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        # One generator per epoch and process.
        generator = np.random.default_rng((SEED, self.current_epoch, self.local_rank))
        self.epoch_support = self.on_device(self.support_bank.draw(self.shots, generator))

    def batch_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        queries, target = self._query_slices(batch["data"], batch["target"])
        images, masks = self.epoch_support
        episode = self.network(queries[None], images[None], masks[None])
        logits = episode.logits[0]
        if not self.label_manager.has_regions:
            logits = torch.cat((torch.zeros_like(logits[:, :1]), logits), 1)
        return self.loss(logits, target) + episode.alignment_loss + episode.prototype_loss, (episode, logits)

    def epoch_tensors(self) -> list[Tensor]:
        classes = len(class_labels(self.label_manager))
        slices, size = self.shots * classes, self.configuration_manager.patch_size[-2:]
        self.epoch_support = (
            torch.empty(slices, self.num_input_channels, *size, device=self.device),
            torch.empty(slices, classes, *size, device=self.device),
        )
        return list(self.epoch_support)

    def _query_slices(self, data: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """At most `max_slices` slices of every sample: (B, M, D, H, W) -> (Q, M, H, W); 2D data as they are."""
        if data.ndim == 4:
            return data, target
        slices = data.shape[2]
        if slices > self.max_slices:
            chosen = torch.randperm(slices, device=data.device)[: self.max_slices].sort().values
            data, target = data[:, :, chosen], target[:, :, chosen]
        return data.movedim(2, 1).flatten(0, 1), target.movedim(2, 1).flatten(0, 1)
