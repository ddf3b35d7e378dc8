"""The training step of any nnU-Net trainer, as a step to be traced."""

import copy
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nnunet_ext.profiling.memory import Step


def trainer_step(
    trainer_class: type, plans: dict, configuration: str, dataset_json: dict, batch_size: int, device: str = "cuda"
) -> Callable[[], Step]:
    """What builds the training step of a trainer: its own network, loss and optimiser on a batch without content.

    Args:
        trainer_class: nnU-Net's trainer or any subclass; one of ours may say itself what a step is (`batch_loss`).
        plans: nnU-Net's plans.
        configuration: Configuration of the plans.
        dataset_json: The dataset's; an ignore label is left out, as its loss branches on the labels it finds.
        batch_size: Samples in a batch.
        device: Where the trainer believes to train.
    """
    labels = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    dataset_json = dataset_json | {"labels": labels}

    def make() -> Step:
        trainer = _construct(trainer_class, plans, configuration, dataset_json)
        trainer.device = torch.device(device)
        # torch.compile does not run operators one by one; its programs keep less rather than more.
        trainer._do_i_compile = lambda: False
        managers = trainer.plans_manager, trainer.configuration_manager
        trainer.num_input_channels = determine_num_input_channels(*managers, dataset_json)
        outputs = trainer.label_manager.num_segmentation_heads
        trainer.network = trainer_class.build_network_architecture(  # type: ignore[attr-defined]
            *managers, trainer.num_input_channels, outputs, trainer.enable_deep_supervision
        )
        optimiser, _ = trainer.configure_optimizers()
        trainer.loss = trainer._build_loss()
        batch = trainer.example_batch(batch_size) if hasattr(trainer, "example_batch") else _batch(trainer, batch_size)
        others = trainer.epoch_tensors() if hasattr(trainer, "epoch_tensors") else []

        def loss(*_: Tensor) -> tuple[Tensor, Any]:
            if hasattr(trainer, "batch_loss"):
                return trainer.batch_loss(batch)
            output = trainer.network(batch["data"])
            return trainer.loss(output, batch["target"]), output

        return Step(trainer.network, optimiser, [*tree_leaves(batch), *others], loss)

    return make


def _construct(trainer_class: type, plans: dict, configuration: str, dataset_json: dict) -> Any:
    """A trainer as nnU-Net makes it, its results in a folder that is gone at once."""
    plans = copy.deepcopy(plans) | {"continue_training": False}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"nnUNet_results": folder}),
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):
        return trainer_class(plans, configuration, 0, dataset_json, torch.device("cpu"))


def _batch(trainer: Any, batch_size: int) -> dict[str, Tensor | list[Tensor]]:
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
