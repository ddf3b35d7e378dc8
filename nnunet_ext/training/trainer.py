"""The base of our trainers: nnU-Net's trainer with one of our networks, a budget, and further state."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nnunet_ext import __version__
from nnunet_ext.nnunet.budget import Budget, StepSettings
from nnunet_ext.nnunet.checkpoints import (
    LATEST_CHECKPOINT,
    differences,
    misfits,
    read_checkpoint,
)
from nnunet_ext.profiling.contract import nnunet_batch_loss, nnunet_example_batch
from nnunet_ext.training.checkpoint_request import CheckpointRequest
from nnunet_ext.training.divergence import StepGuard, bad_cases, not_finite, unknown_labels
from nnunet_ext.training.network_trainer import NetworkTrainer
from nnunet_ext.utils.allocator import keep_freed_memory
from nnunet_ext.utils.files import check_writable, named_errors, remove, replacing
from nnunet_ext.utils.messages import some_of
from nnunet_ext.utils.safe_load import without_numpy
from nnunet_ext.utils.subprocesses import RESUMABLE_EXIT

_CHECKPOINT_KEY = "nnunet_ext"
_MAX_EPOCHS_BETWEEN_CHECKPOINTS = 50


class PluginTrainer(NetworkTrainer):
    """nnU-Net's trainer with any network, the budget of the environment and extra state in the checkpoint.

    Subclasses name their network as `NetworkTrainer` says, and may extend `extra_state` and `load_extra_state`.
    """

    # nnU-Net reads this signature by name: it must be exactly its own.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        budget, steps = Budget.from_environment(), StepSettings.from_environment()  # before anything is written
        super().__init__(plans, configuration, fold, dataset_json, device)
        # nnU-Net would train without a log if it cannot write one, up to the first checkpoint.
        check_writable(self.output_folder)
        if not self.supervises_lower_outputs():
            self.enable_deep_supervision = False  # nnU-Net gives the lowest output the weight 0
        if budget.epochs is not None:
            self.num_epochs = budget.epochs
        if budget.iterations is not None:
            self.num_iterations_per_epoch = budget.iterations
        if budget.val_iterations is not None:
            self.num_val_iterations_per_epoch = budget.val_iterations
        self._steps = steps
        if steps.learning_rate is not None:
            self.initial_lr = steps.learning_rate
        # Short trainings should be resumable too.
        self.save_every = max(1, min(_MAX_EPOCHS_BETWEEN_CHECKPOINTS, self.num_epochs // 10))

    def initialize(self) -> None:
        if not self.label_manager.foreground_labels and not self.label_manager.has_regions:
            raise ValueError("dataset.json names no label besides background: there is nothing to segment")
        super().initialize()
        self._step_guard = StepGuard(
            self.optimizer, self.print_to_log_file, lambda: self.current_epoch, scaled=self.grad_scaler is not None
        )

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler]:
        """nnU-Net's optimiser, or with the momentum of the environment."""
        optimizer, schedule = super().configure_optimizers()
        if self._steps.momentum is not None:
            for group in optimizer.param_groups:
                group["momentum"] = self._steps.momentum
        return optimizer, schedule

    def _build_loss(self) -> nn.Module:
        # nnU-Net gives the lowest output the weight 0; for a single output, after one pooling, that is 0 / 0.
        with np.errstate(invalid="ignore"):
            loss = super()._build_loss()
        if isinstance(loss, DeepSupervisionWrapper) and len(loss.weight_factors) == 1:
            loss.weight_factors = (1.0,)
        return loss

    def batch_loss(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Returns the loss of a batch, and whatever else `train_step` holds until its end, as planning traces them.

        It mirrors nnU-Net's `train_step`; override both together.
        """
        return nnunet_batch_loss(self, batch)

    def example_batch(self, batch_size: int) -> dict[str, Any]:
        """Returns a batch in the shapes and types that `train_step` gets; override both together."""
        return nnunet_example_batch(self, batch_size)

    def epoch_tensors(self) -> list[Tensor]:
        """Returns the tensors that an epoch keeps on the device besides its batches; planning calls it on fakes."""
        return []

    @property
    def budget(self) -> Budget:
        """The budget in use, nnU-Net's own values included."""
        return Budget(self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch)

    def extra_state(self) -> dict[str, Any]:
        """State that our checkpoints hold beyond nnU-Net's."""
        return {"version": __version__, "budget": vars(self.budget)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restores what `extra_state` returned when the checkpoint was written."""
        if state["budget"] != vars(self.budget):
            self.print_to_log_file(f"Note: the checkpoint was trained with {state['budget']}, now {vars(self.budget)}.")

    def run_training(self) -> None:
        """nnU-Net's loop; on the CPU denormal numbers count as 0 in it.

        Gradients that vanish, such as those through a saturated softmax, pass through denormal numbers, with which x86
        processors compute many times more slowly.
        """
        flushes = self.device.type == "cpu" and torch.set_flush_denormal(True)
        if flushes:
            self.print_to_log_file("Denormal numbers (in float32, below 1.2e-38) count as 0.")
        try:
            super().run_training()
        finally:
            if flushes:
                torch.set_flush_denormal(False)

    def on_train_start(self) -> None:
        self._checkpoint_request = CheckpointRequest()
        self._first_epoch = self.current_epoch
        if self.local_rank == 0:
            for pattern in ("*.pth.base", "*.pth.partial"):  # of a run that was killed
                for left_over in Path(self.output_folder).glob(pattern):
                    remove(left_over)
        super().on_train_start()
        if self.device.type == "cpu" and keep_freed_memory():
            self.print_to_log_file("Freed memory is kept for the next step (mallopt), which saves page faults.")
        self._step_guard.scaled = self.grad_scaler is not None
        self.print_to_log_file(
            f"nnunet_ext {__version__}, {type(self).__name__}: {self.num_epochs} epochs, "
            f"{self.num_iterations_per_epoch} training and {self.num_val_iterations_per_epoch} validation iterations "
            "per epoch"
        )
        if self._steps != StepSettings():
            self.print_to_log_file(self._said_of_steps())

    def _said_of_steps(self) -> str:
        """Which of the learning rate and the momentum of the environment are those of the optimiser."""
        momentum = self.optimizer.param_groups[0].get("momentum")
        own = StepSettings(getattr(self.lr_scheduler, "initial_lr", None), momentum).environment()
        asked = self._steps.environment().items()
        heeded = ", ".join(f"{name}={value}" for name, value in asked if own.get(name) == value)
        ignored = ", ".join(f"{name}={value}" for name, value in asked if own.get(name) != value)
        said = [f"Steps of the environment: {heeded}."] if heeded else []
        if ignored:
            said.append(f"{ignored} has no effect: {type(self).__name__} has an optimiser of its own.")
        return " ".join(said)

    def on_epoch_start(self) -> None:
        """Ends a training on request: here the previous epoch is complete, in subclasses too; the first always runs."""
        if self.current_epoch > self._first_epoch and self._checkpoint_request.pending(self.device):
            self._end_with_checkpoint()
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._step_guard.begin_epoch()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        self._step_guard.end_epoch(len(train_outputs))
        super().on_train_epoch_end(train_outputs)

    def _end_with_checkpoint(self) -> None:
        """Writes the checkpoint from which nnUNetv2_train --c resumes, and ends the process."""
        self.current_epoch -= 1  # nnU-Net saves the number of the epoch after the current one
        self.save_checkpoint(os.path.join(self.output_folder, LATEST_CHECKPOINT))
        self.print_to_log_file(f"Ended on request after epoch {self.current_epoch}; nnUNetv2_train --c resumes.")
        if self.is_ddp:
            dist.barrier()  # the process that started all ranks ends those that still write when one has ended
        raise SystemExit(RESUMABLE_EXIT)

    def train_step(self, batch: dict) -> dict:
        self.check_batch(batch)
        return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        self.check_batch(batch)
        return super().validation_step(batch)

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Ends the training, naming the cases, if a batch would spoil it.

        Raises:
            ValueError: as `refuse_not_finite` and `refuse_unknown_labels`.
        """
        self.refuse_not_finite(batch)
        self.refuse_unknown_labels(batch)

    def refuse_unknown_labels(self, batch: Mapping[str, Any]) -> None:
        """Ends the training if a batch's target has labels for which the network has no output.

        The loss would raise an index error, on CUDA a device-side assertion, without naming the cases.

        Raises:
            ValueError: with the labels, the cases that have them and the labels of dataset.json.
        """
        if self.label_manager.has_regions:
            return  # the target is one mask per region
        ignored = [self.label_manager.ignore_label] if self.label_manager.has_ignore_label else []
        known = [*self.label_manager.all_labels, *ignored]
        samples, labels = unknown_labels(batch, self.label_manager.num_segmentation_heads - 1 + len(ignored))
        if not samples:
            return
        keys = list(batch.get("keys", ()))
        raise ValueError(
            f"the preprocessed cases {some_of(sorted({str(keys[i]) for i in samples if keys}))} have labels "
            f"{some_of([str(label) for label in labels])} for which the network has no output; dataset.json has "
            f"{', '.join(map(str, known))}: correct the label files or dataset.json, whose labels must be consecutive, "
            "and preprocess again"
        )

    def refuse_not_finite(self, batch: Mapping[str, Any]) -> None:
        """Ends the training if a batch's images have NaN or infinite voxels, before these reach the weights.

        Raises:
            ValueError: with the cases that have them.
        """
        samples = not_finite(batch)
        if not samples:
            return
        keys = list(batch.get("keys", ()))  # nnU-Net's loaders name the cases
        drawn = [str(keys[i]) for i in samples] if keys else list(self.get_tr_and_val_datasets()[0].identifiers)
        cases = bad_cases(self.dataset_class(self.preprocessed_dataset_folder, drawn), drawn)
        if not cases:
            raise ValueError(f"the augmentation of {', '.join(drawn)} made NaN or infinite voxels of finite ones")
        raise ValueError(
            f"NaN or infinite voxels in the preprocessed images of {', '.join(cases)} "
            f"({self.preprocessed_dataset_folder}): correct these scans or take them out of the dataset, preprocess "
            "again and resume with --c; `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` finds NaN beforehand"
        )

    def on_epoch_end(self) -> None:
        self.print_to_log_file(f"Peak memory: {_peak_memory_gb(self.device):.2f} GB")
        super().on_epoch_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        if self.is_ddp:
            # Only once: DDP does it at every tile, where ranks with different numbers of tiles would wait for ever.
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)
            self.network.broadcast_buffers = False
        super().perform_actual_validation(save_probabilities)

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint and our state; the file is replaced in one step, so that a kill never damages it.

        It holds tensors and plain values alone, so that ``torch.load(..., weights_only=True)`` reads it.

        Raises:
            OSError: with the file and the reason, a full disk for instance; an existing checkpoint stays.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        # nnU-Net writes the file and we complete it, so that its format is that of the installed nnU-Net.
        base = Path(f"{filename}.base")
        try:
            # An open file rather than its name: torch then reports why it cannot be written.
            with named_errors(filename), base.open("wb") as file:
                super().save_checkpoint(file)
            checkpoint = torch.load(base, map_location="cpu", mmap=True, weights_only=False)
            checkpoint[_CHECKPOINT_KEY] = self.extra_state()
            with replacing(filename) as file:
                torch.save(without_numpy(checkpoint), file)
            del checkpoint  # it maps the file that is removed below
        finally:
            remove(base)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Loads a checkpoint as nnU-Net does.

        Raises:
            ValueError: for a damaged or foreign file, and for a checkpoint of another plan, with the differences.
        """
        checkpoint = read_checkpoint(filename_or_checkpoint)
        if not self.was_initialized:
            self.initialize()
        self._check_fits(filename_or_checkpoint, checkpoint)
        super().load_checkpoint(filename_or_checkpoint)
        if _CHECKPOINT_KEY in checkpoint:
            self.load_extra_state(checkpoint[_CHECKPOINT_KEY])
        else:
            self.print_to_log_file(f"Note: {filename_or_checkpoint} was not written by a trainer of nnunet_ext.")

    def _check_fits(self, filename: str, checkpoint: Mapping[str, Any]) -> None:
        weights = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
        found = misfits(self.plain_network, weights)
        if not found:
            return
        others = differences(checkpoint["init_args"], self.my_init_kwargs)
        trainer = checkpoint["trainer_name"]
        if trainer != type(self).__name__:
            others.insert(0, f"trainer {trainer} in the checkpoint, {type(self).__name__} here")
        raise ValueError(
            f"the checkpoint {filename} does not fit this training: {'; '.join(others) or 'other code'} "
            f"({some_of(found, 4)}). Resume with the plan and the labels that it was trained with, or move the folder "
            "of this fold away and train again without --c; `nnunet_ext adapt-weights` carries weights to another plan"
        )


def _peak_memory_gb(device: torch.device) -> float:
    """Peak memory of the process so far in GB: what torch allocated on a GPU, elsewhere the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
