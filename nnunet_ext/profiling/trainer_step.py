"""The training step of any nnU-Net trainer, as a step to be traced."""

import copy
import os
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any
from unittest import mock

import torch

from nnunet_ext.nnunet.plan_settings import plan_setting
from nnunet_ext.profiling.contract import NNUNetStep, TraceableTrainer
from nnunet_ext.profiling.memory import Step
from nnunet_ext.utils.fake_modules import built_on_fake_tensors
from nnunet_ext.utils.torch_private import tree_leaves


def trainer_step(
    trainer_class: type, plans: dict, configuration: str, dataset_json: dict, batch_size: int, *, device: str = "cuda"
) -> Callable[[], Step]:
    """Returns a function that builds a trainer's training step: its network, loss and optimiser on a fake batch.

    Args:
        trainer_class: nnU-Net's trainer or any subclass; a `TraceableTrainer` defines its step itself.
        plans: nnU-Net's plans.
        configuration: Configuration of the plans.
        dataset_json: Content of the dataset's dataset.json. An ignore label is left out, because nnU-Net's loss then
            branches on the labels that it finds, and a fake batch has none.
        batch_size: Samples in a batch.
        device: Device that the trainer is told to train on.
    """
    labels = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    dataset_json = dataset_json | {"labels": labels}

    def make() -> Step:
        trainer = construct_trainer(trainer_class, plans, configuration, dataset_json)
        trainer.device = torch.device(device)
        # A compiled program cannot be traced operator by operator; it needs less memory rather than more.
        trainer._do_i_compile = lambda: False
        setting = plan_setting(trainer.plans_manager, configuration, dataset_json)
        trainer.num_input_channels = setting.input_channels
        trainer.network = built_on_fake_tensors(lambda: setting.network(trainer, trainer.enable_deep_supervision))
        optimiser, _ = trainer.configure_optimizers()
        trainer.loss = trainer._build_loss()
        traced = trainer if isinstance(trainer, TraceableTrainer) else NNUNetStep(trainer)
        batch = traced.example_batch(batch_size)
        held = [*tree_leaves(batch), *traced.epoch_tensors()]
        return Step(trainer.network, optimiser, held, lambda *_: traced.batch_loss(batch))

    return make


def construct_trainer(trainer_class: type, plans: dict, configuration: str, dataset_json: dict) -> Any:
    """Builds a trainer as nnU-Net does, with a results folder that is deleted at once."""
    plans = copy.deepcopy(plans) | {"continue_training": False}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"nnUNet_results": folder}),
        open(os.devnull, "w") as nowhere,
        redirect_stdout(nowhere),
    ):
        return trainer_class(plans, configuration, 0, dataset_json, torch.device("cpu"))
