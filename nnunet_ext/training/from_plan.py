"""Networks from nnU-Net's plans."""

import pydoc
from typing import Any

from torch import nn

_TOPOLOGY = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")


def network_from_plan(
    network: type[nn.Module],
    configuration: Any,
    input_channels: int,
    num_classes: int,
    deep_supervision: bool,
) -> nn.Module:
    """Builds `network` with the topology of a plan's configuration.

    A plan made for this very network gives all its arguments; from a plan for another one (nnU-Net's own) the
    topology is taken: stages, features, kernels, strides, 2D or 3D, and the patch size.

    Args:
        network: The class, with nnU-Net's constructor vocabulary.
        configuration: nnU-Net's ``ConfigurationManager``.
        input_channels: Channels of the input.
        num_classes: Number of logits.
        deep_supervision: Whether the network returns outputs of lower levels too.

    Raises:
        ValueError: if the plan lacks a part of the topology.
    """
    arguments = dict(configuration.network_arch_init_kwargs)
    for key in configuration.network_arch_init_kwargs_req_import:
        if isinstance(arguments.get(key), str):
            arguments[key] = pydoc.locate(arguments[key])
    if pydoc.locate(configuration.network_arch_class_name) is network:
        own, planned = list(arguments.get("patch_size", ())), list(configuration.patch_size)
        if own != planned:
            raise ValueError(
                f"the plan's `patch_size`={planned} and `arch_kwargs` `patch_size`={own} differ: the weights of "
                f"{network.__name__} are tied to the patch size, make them equal"
            )
    else:
        missing = [key for key in _TOPOLOGY if key not in arguments]
        if missing:
            raise ValueError(
                f"the plan's network {configuration.network_arch_class_name} has no {', '.join(missing)}: "
                f"{network.__name__} cannot take its topology from it; plan with nnU-Net's default planner"
            )
        arguments = {key: arguments[key] for key in _TOPOLOGY} | {"patch_size": configuration.patch_size}
    arguments["deep_supervision"] = deep_supervision
    return network(input_channels=input_channels, num_classes=num_classes, **arguments)
