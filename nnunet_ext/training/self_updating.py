"""Training with the SM loss."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nnunet_ext.losses import SelfUpdatingLoss, output_weights
from nnunet_ext.losses.region_terms import Terms
from nnunet_ext.training.trainer import PluginTrainer


class SelfUpdatingLossTrainer(PluginTrainer):
    """Trains with `SelfUpdatingLoss`, whose weights are saved in the checkpoint and logged every epoch."""

    loss: SelfUpdatingLoss

    def initialize(self) -> None:
        super().initialize()
        self.loss_history: list[dict[str, list[float]]] = []

    def _build_loss(self) -> SelfUpdatingLoss:
        weights = None
        scales = self._get_deep_supervision_scales()
        if scales is not None:
            # As in nnU-Net: the lowest output does not count, but DDP must see a gradient for its weights.
            lowest = 1e-6 if self.is_ddp and not self._do_i_compile() else 0.0
            weights = output_weights(len(scales), lowest)
        return SelfUpdatingLoss(
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            deep_supervision_weights=weights,
        ).to(self.device)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.loss.train()
        self._term_sums: Tensor = torch.zeros(len(Terms._fields), device=self.device)

    def train_step(self, batch: dict) -> dict:
        result = super().train_step(batch)
        if self.loss.last_terms is not None:
            self._term_sums += torch.stack(self.loss.last_terms)
        return result

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        terms = self._term_sums / len(train_outputs)
        if self.is_ddp:
            dist.all_reduce(terms)
            terms /= dist.get_world_size()
        entry = {
            "terms": terms.tolist(),
            "raw_weights": self.loss.raw_weights.tolist(),
            "weights": self.loss.weights.tolist(),
        }
        self.loss_history.append(entry)
        for name, values in entry.items():
            text = ", ".join(f"{term} {value:.4f}" for term, value in zip(Terms._fields, values, strict=True))
            self.print_to_log_file(f"SM loss {name}: {text}")

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.loss.eval()

    def extra_state(self) -> dict[str, Any]:
        # On the CPU: nnU-Net loads pretrained weights to the device from which they were saved.
        of_loss = {key: value.cpu() for key, value in self.loss.state_dict().items()}
        return super().extra_state() | {"loss": of_loss, "loss_history": self.loss_history}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        if "loss" not in state:
            self.print_to_log_file("Note: the checkpoint was trained with another loss; the SM loss starts afresh.")
            return
        self.loss.load_state_dict(state["loss"])
        self.loss_history = list(state["loss_history"])
