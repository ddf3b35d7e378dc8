"""A network as nnU-Net's plans describe it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunet_ext.networks.own import is_ours, network_name
from nnunet_ext.networks.topology import Topology


def describe(network: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `architecture` of a plan: class and arguments, with kernels and strides per stage and axis.

    For a class that is not one of `nnunet_ext.networks`, the arguments are the topology alone: the trainer turns it
    into the constructor's arguments.

    Args:
        network: Class of the network.
        arguments: The constructor's arguments except for the channels, which nnU-Net supplies.

    Raises:
        ValueError: for inconsistent sizes; see `Topology.create`.
    """
    ours = is_ours(network)
    topology = Topology.create(
        **{
            key: arguments[key]
            for key in ("conv_op", "patch_size", "n_stages", "features_per_stage", "kernel_sizes", "strides")
        },
        divisible=ours,
    )
    conv_op = topology.conv_op
    own = {
        "features_per_stage": _plain(topology.features),
        "kernel_sizes": _plain(topology.kernel_sizes),
        "strides": _plain(topology.strides),
        "conv_op": f"{conv_op.__module__}.{conv_op.__name__}",
    }
    if ours:
        own = {**arguments, "patch_size": _plain(topology.patch_size), **own}
    return {
        "network_class_name": network_name(network),
        "arch_kwargs": {"n_stages": topology.n_stages, **own},
        "_kw_requires_import": ["conv_op"],
    }


def unet_architecture(topology: Topology) -> dict[str, Any]:
    """Returns the `architecture` of a plan for nnU-Net's U-Net, as its default planner writes it."""
    axes = topology.spatial_dims
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": topology.n_stages,
            "features_per_stage": _plain(topology.features),
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": _plain(topology.kernel_sizes),
            "strides": _plain(topology.strides),
            "n_conv_per_stage": [2] * topology.n_stages,
            "n_conv_per_stage_decoder": [2] * (topology.n_stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _plain(values: Any) -> Any:
    """Converts tuples of numbers into lists of Python integers, as JSON has them."""
    return [_plain(value) for value in values] if isinstance(values, tuple) else int(values)
