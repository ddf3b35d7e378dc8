"""Parameters and multiply-adds of networks, without running them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.networks import NETWORKS
from nnunet_ext.networks.from_plan import network_from_plan
from nnunet_ext.nnunet.plan_settings import plan_setting, read_plan
from nnunet_ext.nnunet.trainers import find_trainer, network_of
from nnunet_ext.utils.fake_modules import built_on_fake_tensors
from nnunet_ext.utils.torch_private import FakeTensorMode


def multiply_adds(network: nn.Module, input_channels: int, patch_size: tuple[int, ...]) -> int:
    """Returns the multiply-adds of the convolutions and matrix products of one forward pass with batch size 1.

    They are counted on fake tensors, which take no memory; Fourier transforms and element-wise work are not counted.

    Args:
        network: A network built under the `FakeTensorMode` that is active.
        input_channels: Channels of the input.
        patch_size: Spatial size in voxels.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.empty(1, input_channels, *patch_size))
    return counter.get_total_flops() // 2


def trainer_network_size(trainer: Any, plans: Any, configuration: str, dataset_json: dict) -> dict[str, Any]:
    """Returns parameters, multiply_adds and patch_size of the network that a trainer builds from a plan to predict.

    Args:
        trainer: Class of the trainer.
        plans: nnU-Net's ``PlansManager``.
        configuration: Configuration of the plan.
        dataset_json: Content of the dataset's dataset.json.
    """
    setting = plan_setting(plans, configuration, dataset_json)
    patch = tuple(int(size) for size in setting.configuration.patch_size)
    with FakeTensorMode():
        network = built_on_fake_tensors(lambda: setting.network(trainer, deep_supervision=False)).eval()
        return {
            "parameters": sum(p.numel() for p in network.parameters()),
            "multiply_adds": multiply_adds(network, setting.input_channels, patch),
            "patch_size": patch,
        }


def network_costs(plans: Path | None, configuration: str) -> list[dict[str, Any]]:
    """Returns one row per network: name, trainers, variants, sizes, parameters, multiply-adds.

    Args:
        plans: nnU-Net's plans file, with dataset.json in the same folder; None: each paper's own setting.
        configuration: Configuration of the plan.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an unknown configuration (lists the known ones).
    """
    rows = []
    for info in NETWORKS.values():
        with FakeTensorMode():
            if plans is None:
                channels, classes = info.paper["input_channels"], info.paper["num_classes"]
                patch = tuple(info.paper["patch_size"])
                network = info.network(**info.paper)
            else:
                setting = read_plan(plans, configuration)
                channels, classes = setting.input_channels, setting.num_classes
                patch = tuple(setting.configuration.patch_size)
                network = network_from_plan(
                    info.network, setting.configuration, channels, classes, deep_supervision=False
                )
            rows.append(
                {
                    "name": info.name,
                    "network": info.network.__name__,
                    "trainers": list(info.trainers),
                    "variants": list(info.variants),
                    "patch_size": list(patch),
                    "input_channels": channels,
                    "num_classes": classes,
                    "parameters": sum(p.numel() for p in network.parameters()),
                    "multiply_adds": multiply_adds(network.eval(), channels, patch),
                }
            )
    return rows


def trainer_costs(trainers: Sequence[str], plans: Path, configuration: str) -> list[dict[str, Any]]:
    """Returns rows as `network_costs` does, for the networks that trainers build from a plan.

    Args:
        trainers: Names of trainers of ours, of nnU-Net's or of the user's.
        plans: nnU-Net's plans file, with dataset.json in the same folder.
        configuration: Configuration of the plan.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an unknown trainer or configuration, or a plan from which a network cannot be built.
    """
    setting = read_plan(plans, configuration)
    rows = []
    for name in trainers:
        trainer: Any = find_trainer(name)
        own = network_of(trainer)
        described = {
            "name": name,
            "network": "network of its plan" if own is None else own.__name__,
            "trainers": [name],
            "variants": [],
            "input_channels": setting.input_channels,
            "num_classes": setting.num_classes,
        }
        rows.append(described | trainer_network_size(trainer, setting.plans, configuration, setting.dataset_json))
    return rows
