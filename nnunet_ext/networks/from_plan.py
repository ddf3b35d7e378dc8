"""Networks from nnU-Net's plans."""

import pydoc
from collections.abc import Callable
from typing import Any

from torch import nn

from nnunet_ext.networks.own import accepted, check_arguments, is_named, is_ours, takes
from nnunet_ext.networks.topology import Topology

_TOPOLOGY = ("n_stages", "features_per_stage", "conv_op", "kernel_sizes", "strides")


def network_from_plan(
    network: type[nn.Module],
    configuration: Any,
    input_channels: int,
    num_classes: int,
    deep_supervision: bool,
    *,
    network_arguments: Callable[[Topology, int, int], dict[str, Any]] | None = None,
    **settings: Any,
) -> nn.Module:
    """Builds `network` with the topology of a plan's configuration.

    Args:
        network: Class of the network.
        configuration: nnU-Net's ``ConfigurationManager``.
        input_channels: Channels of the input.
        num_classes: Number of logits.
        deep_supervision: Whether the network also returns outputs at lower resolutions. A constructor without a
            parameter of this name does not get it.
        network_arguments: Function from topology, input channels and classes to the constructor's arguments; None:
            nnU-Net's vocabulary, as `vocabulary` gives it.
        **settings: Further arguments of the network, which override all others.

    Raises:
        ValueError: if the plan lacks a part of the topology, specifies another patch size for the network, or the
            constructor does not take the arguments.
    """
    further = planned_arguments(network, configuration)
    topology = Topology.create(**{key: further.pop(key) for key in (*_TOPOLOGY, "patch_size")}, divisible=False)
    if network_arguments is None:
        arguments = vocabulary(network, topology, input_channels, num_classes)
    else:
        arguments = network_arguments(topology, input_channels, num_classes)
    arguments = further | arguments | settings
    if takes(network, "deep_supervision"):
        arguments["deep_supervision"] = deep_supervision
    check_arguments(network, arguments)
    return network(**arguments)


def vocabulary(network: type[nn.Module], topology: Topology, input_channels: int, num_classes: int) -> dict[str, Any]:
    """Arguments in nnU-Net's vocabulary, as far as the network's constructor takes them."""
    of_data = {"input_channels": input_channels, "num_classes": num_classes}
    return accepted(network, of_data | topology.arguments())


def planned_arguments(network: type[nn.Module], configuration: Any) -> dict[str, Any]:
    """Constructor arguments for `network` from a plan's configuration.

    A plan made for this very network provides all of its arguments. A plan made for another network (such as
    nnU-Net's own) provides the topology: stages, features, kernels, strides, 2D or 3D, and the patch size. A network
    that arranges its stages differently has a class method `adapt_topology`, which converts this topology to its own.
    The network's `plan_arguments` names further arguments that are taken from the plan where it has them.
    """
    arguments = dict(configuration.network_arch_init_kwargs)
    for key in configuration.network_arch_init_kwargs_req_import:
        if isinstance(arguments.get(key), str):
            arguments[key] = pydoc.locate(arguments[key])
    if is_named(network, configuration.network_arch_class_name):
        if not is_ours(network):  # its plans have the patch in one place
            return arguments | {"patch_size": configuration.patch_size}
        own, planned = list(arguments.get("patch_size", ())), list(configuration.patch_size)
        if own != planned:
            raise ValueError(
                f"the plan's `patch_size`={planned} and `arch_kwargs` `patch_size`={own} differ: the weights of "
                f"{network.__name__} are tied to the patch size, make them equal"
            )
        return arguments
    missing = [key for key in _TOPOLOGY if key not in arguments]
    if missing:
        raise ValueError(
            f"the plan's network {configuration.network_arch_class_name} has no {', '.join(missing)}: "
            f"{network.__name__} cannot take its topology from it; plan with nnU-Net's default planner"
        )
    topology = {key: arguments[key] for key in _TOPOLOGY} | {"patch_size": configuration.patch_size}
    further = {key: arguments[key] for key in getattr(network, "plan_arguments", ()) if key in arguments}
    return adapted_topology(network, topology) | further


def adapted_topology(network: type[nn.Module], topology: dict[str, Any]) -> dict[str, Any]:
    """A U-Net's topology converted by the network's class method `adapt_topology`, if it has one."""
    adapt = getattr(network, "adapt_topology", None)
    return topology if adapt is None else adapt(**topology)


def output_scales(network: type[nn.Module], configuration: Any) -> list[list[float]]:
    """Sizes of a network's outputs under deep supervision relative to the patch, per output and axis.

    There is one output per stage, full resolution first, except for the lowest stage.
    """
    arguments = planned_arguments(network, configuration)
    topology = Topology.create(**{key: arguments[key] for key in (*_TOPOLOGY, "patch_size")})
    return [
        [size / full for size, full in zip(sizes, topology.patch_size, strict=True)] for sizes in topology.sizes[:-1]
    ]
