"""Base of FAF-Net's trainers: the support for prediction, the authors' optimiser, a step on an episode."""

from contextlib import nullcontext
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from nnunet_ext.fewshot.bank import SupportBank, SupportSlices, class_labels
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.head import UNLABELLED
from nnunet_ext.training.parameter_groups import load_ungrouped
from nnunet_ext.training.schedules import EpochScheduler, PolyScheduler, StepDecayScheduler
from nnunet_ext.training.trainer import PluginTrainer

_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4
_DECAY, _DECAYS = 0.98, 14
"""The authors' schedule: a factor of 0.98 every 3000 of 42000 iterations."""
SEED = 20240601
_MAX_GRADIENT_NORM = 12  # nnU-Net's


class FAFNetBaseTrainer(PluginTrainer):
    """FAF-Net with a support from the labels of the training fold; `batch_loss` defines what it learns from.

    In validation, in checkpoints and so in nnUNetv2_predict, the network predicts with the support of a fixed, seeded
    set of slices, which is encoded again before each validation and checkpoint. The optimiser is the authors'.

    Subclasses set `network_settings` and may change `learning_rate`, `anneals`, `shots` and `encoder_weights`.
    """

    network_class = FAFNet
    has_lower_outputs = False
    learning_rate = 1e-3
    """The authors' learning rate."""
    anneals = False
    """Whether the rate falls to 0 as nnU-Net's does, rather than by the authors' steps to 0.77 of its start."""
    shots = 5
    """Support slices per class."""
    encoder_weights: str | None = None
    """Initial weights of a pretrained encoder; see `FAFNet.load_encoder_weights`. Downloaded for training only."""

    _is_restored = False

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        self._is_restored = True
        super().load_checkpoint(filename_or_checkpoint)

    def initialize(self) -> None:
        super().initialize()
        if not self._is_restored:
            self.load_encoder()
        elif self.encoder_weights is not None:  # the checkpoint has the weights: no download is needed
            self.plain_network.freeze_encoder_norms()

    def load_encoder(self) -> None:
        """Loads the encoder's initial weights."""
        if self.encoder_weights is None:
            return
        try:
            self.plain_network.load_encoder_weights(self.encoder_weights)
        except RuntimeError as error:
            raise RuntimeError(
                f"{error}: that is FAFNetTrainer, or a subclass of {type(self).__name__} with encoder_weights = None"
            ) from error

    def configure_optimizers(self) -> tuple[SGD, EpochScheduler]:
        rate = self.learning_rate
        optimizer = SGD(self.parameter_groups(), rate, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
        load_ungrouped(optimizer, self.network)
        if self.anneals:
            return optimizer, PolyScheduler(optimizer, rate, self.num_epochs)
        return optimizer, StepDecayScheduler(optimizer, rate, self.num_epochs, _DECAY, _DECAYS)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters for the optimiser, with rates of their own where these are not `learning_rate`."""
        return [{"params": list(self.network.parameters())}]

    def on_train_start(self) -> None:
        super().on_train_start()
        self._log_support()

    def batch_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Loss from one call of the network, the only one that DDP and torch.compile see."""
        raise NotImplementedError

    def train_step(self, batch: dict) -> dict:
        self.check_batch(batch)
        on_device = {
            key: value.to(self.device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)
        }
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            loss, _ = self.batch_loss(on_device)
        self._descend(loss)
        return {"loss": loss.detach().cpu().numpy()}

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.refresh_support()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        # With --val the support comes from the checkpoint, so that the validated network is the one that predicts.
        if not self.plain_network.has_support:
            self.refresh_support()
        super().perform_actual_validation(save_probabilities)

    def save_checkpoint(self, filename: str) -> None:
        if not self.disable_checkpointing:
            self.refresh_support()
        super().save_checkpoint(filename)

    def refresh_support(self) -> None:
        """Encodes the fixed support slices with the current network."""
        images, masks = self.on_device(self.fixed_support)
        self.plain_network.set_support(images, masks, regions=self.label_manager.has_regions)

    @property
    def plain_network(self) -> FAFNet:
        return cast(FAFNet, super().plain_network)

    @cached_property
    def support_bank(self) -> SupportBank:
        """Labelled slices of the training fold."""
        training_cases, _ = self.get_tr_and_val_datasets()
        names = list(self.dataset_json["labels"])
        return SupportBank(
            training_cases,
            classes=class_labels(self.label_manager),
            names=[name for name in names if name not in ("background", "ignore")],
            size=self.configuration_manager.patch_size[-2:],
            one_hot=self.one_hot_labels,
            ignore=self.label_manager.ignore_label,
        )

    @property
    def one_hot_labels(self) -> list[int]:
        """Labels of the previous stage that are channels of the input (nnU-Net's cascade)."""
        return list(self.label_manager.foreground_labels) if self.is_cascaded else []

    @cached_property
    def fixed_support(self) -> SupportSlices:
        """The support slices for prediction."""
        return self.support_bank.draw(self.shots, np.random.default_rng(SEED))

    def _log_support(self) -> None:
        counts = self.fixed_support.counts
        for labels, count in zip(class_labels(self.label_manager), counts, strict=True):
            short = f", fewer than the {self.shots} asked for: the fold has no more" if count < self.shots else ""
            self.print_to_log_file(f"Support of label {labels}: {count} slices{short}")

    def on_device(self, support: SupportSlices) -> tuple[Tensor, Tensor]:
        """Images and masks of a support, on the device.

        Raises:
            ValueError: for NaN or infinite voxels; a prototype of one slice would spread them to all weights.
        """
        images = torch.from_numpy(support.images)
        self.refuse_not_finite({"support_images": images})
        masks = np.where(support.labelled[:, None], support.masks, UNLABELLED).astype(np.float32)
        return images.to(self.device), torch.from_numpy(masks).to(self.device)

    def _descend(self, loss: Tensor) -> None:
        """Backward pass and optimiser step, as in nnU-Net's train_step."""
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
