"""Training of FAF-Net on episodes: query slices are segmented by support slices that are drawn anew every epoch."""

from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.optim import SGD

from nnunet_ext.fewshot.bank import SupportBank, SupportSlices, class_labels
from nnunet_ext.networks import FAFNet
from nnunet_ext.training.schedules import StepDecayScheduler
from nnunet_ext.training.trainer import PluginTrainer

_LEARNING_RATE, _MOMENTUM, _WEIGHT_DECAY = 1e-3, 0.9, 5e-4
_DECAY, _DECAYS = 0.98, 14
"""The authors' 0.98 every 3000 of 42000 iterations."""
_SEED = 20240601
_MAX_GRADIENT_NORM = 12  # nnU-Net's


class FAFNetBaseTrainer(PluginTrainer):
    """FAF-Net with episodes from the labels of the training fold.

    Each epoch draws support slices of every class; the slices of nnU-Net's batches are the queries. The loss is
    nnU-Net's on the queries plus FAF-Net's alignment and prototype losses; the optimiser is the authors'. What the
    network predicts with, in validation, in checkpoints and so in nnUNetv2_predict, is the support of a fixed, seeded
    set of slices, which is encoded anew for each of these.

    Subclasses set `network_settings` and may change `shots`, `max_slices` and `encoder_weights`.
    """

    network_class = FAFNet
    has_lower_outputs = False
    shots = 5
    """Support slices of a class."""
    max_slices = 16
    """Query slices of a patch, at random; a network of ResNet-101's size takes gigabytes for more."""
    encoder_weights: str | None = None
    """What a ResNet starts from; see `FAFNet.load_encoder_weights`. Downloaded for training only."""

    def initialize(self) -> None:
        super().initialize()
        if self.encoder_weights is None:
            return
        try:
            self._plain_network.load_encoder_weights(self.encoder_weights)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}: that is FAFNetTrainer, or a subclass of {type(self).__name__} with encoder_weights = None"
            ) from error

    def configure_optimizers(self) -> tuple[SGD, PolyLRScheduler]:
        optimizer = SGD(self.network.parameters(), _LEARNING_RATE, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
        return optimizer, StepDecayScheduler(optimizer, _LEARNING_RATE, self.num_epochs, _DECAY, _DECAYS)

    def on_train_start(self) -> None:
        super().on_train_start()
        self._log_support()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._episode_support = self._on_device(self._draw_support())

    def train_step(self, batch: dict) -> dict:
        data, target = (batch[key].to(self.device, non_blocking=True) for key in ("data", "target"))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            loss, _ = self.batch_loss(data, target)
        self._descend(loss)
        return {"loss": loss.detach().cpu().numpy()}

    def batch_loss(self, data: Tensor, target: Any) -> tuple[Tensor, Any]:
        queries, target = self._query_slices(data, target)
        images, masks = self._episode_support
        # One episode, through the network's own call: DDP and torch.compile see no other.
        episode = self.network(queries[None], images[None], masks[None])
        logits = episode.logits[0]
        if not self.label_manager.has_regions:
            logits = torch.cat((torch.zeros_like(logits[:, :1]), logits), 1)
        return self.loss(logits, target) + episode.alignment_loss + episode.prototype_loss, (episode, logits)

    def epoch_tensors(self) -> list[Tensor]:
        classes = len(class_labels(self.label_manager))
        slices, size = self.shots * classes, self.configuration_manager.patch_size[-2:]
        self._episode_support = (
            torch.empty(slices, self.num_input_channels, *size, device=self.device),
            torch.empty(slices, classes, *size, device=self.device),
        )
        return list(self._episode_support)

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.refresh_support()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        # With --val the support comes from the checkpoint: what is validated is what will predict.
        if not self._plain_network.has_support:
            self.refresh_support()
        super().perform_actual_validation(save_probabilities)

    def save_checkpoint(self, filename: str) -> None:
        if not self.disable_checkpointing:
            self.refresh_support()
        super().save_checkpoint(filename)

    def refresh_support(self) -> None:
        """Encodes the fixed support slices with the network as it is."""
        images, masks = self._on_device(self._fixed_support())
        self._plain_network.set_support(images, masks, regions=self.label_manager.has_regions)

    @property
    def _plain_network(self) -> FAFNet:
        network = cast(nn.Module, self.network.module if self.is_ddp else self.network)
        return cast(FAFNet, network._orig_mod if isinstance(network, OptimizedModule) else network)

    def _bank(self) -> SupportBank:
        if not hasattr(self, "_support_bank"):
            training_cases, _ = self.get_tr_and_val_datasets()
            names = list(self.dataset_json["labels"])
            foreground = [name for name in names if name not in ("background", "ignore")]
            one_hot = self.label_manager.foreground_labels if self.is_cascaded else ()
            self._support_bank = SupportBank(
                training_cases,
                class_labels(self.label_manager),
                foreground,
                self.configuration_manager.patch_size[-2:],
                one_hot,
            )
        return self._support_bank

    def _draw_support(self) -> SupportSlices:
        """Of this epoch, and of this process among several."""
        generator = np.random.default_rng((_SEED, self.current_epoch, self.local_rank))
        return self._bank().draw(self.shots, generator)

    def _fixed_support(self) -> SupportSlices:
        if not hasattr(self, "_fixed_slices"):
            self._fixed_slices = self._bank().draw(self.shots, np.random.default_rng(_SEED))
        return self._fixed_slices

    def _log_support(self) -> None:
        counts = self._fixed_support().counts
        for labels, count in zip(class_labels(self.label_manager), counts, strict=True):
            short = f", fewer than the {self.shots} asked for: the fold has no more" if count < self.shots else ""
            self.print_to_log_file(f"Support of label {labels}: {count} slices{short}")

    def _on_device(self, support: SupportSlices) -> tuple[Tensor, Tensor]:
        return (
            torch.from_numpy(support.images).to(self.device),
            torch.from_numpy(support.masks).to(self.device, torch.float32),
        )

    def _query_slices(self, data: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """At most `max_slices` slices of every sample: (B, M, D, H, W) -> (Q, M, H, W); 2D data as they are."""
        if data.ndim == 4:
            return data, target
        slices = data.shape[2]
        if slices > self.max_slices:
            chosen = torch.randperm(slices, device=data.device)[: self.max_slices].sort().values
            data, target = data[:, :, chosen], target[:, :, chosen]
        return data.movedim(2, 1).flatten(0, 1), target.movedim(2, 1).flatten(0, 1)

    def _descend(self, loss: Tensor) -> None:
        """As nnU-Net's train_step ends."""
        parameters: Any = self.network.parameters()
        if self.grad_scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
            self.optimizer.step()
            return
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
