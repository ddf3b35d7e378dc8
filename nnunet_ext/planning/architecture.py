"""A network as nnU-Net's plans describe it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from nnunet_ext import networks
from nnunet_ext.networks.topology import Topology


def describe(network: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `architecture` of a plan: class and arguments, with kernels and strides per stage and axis.

    Args:
        network: A class of `nnunet_ext.networks`.
        arguments: The constructor's arguments except for the channels, which nnU-Net supplies.

    Raises:
        ValueError: for inconsistent sizes; see `Topology.create`.
    """
    topology = Topology.create(
        **{
            key: arguments[key]
            for key in ("conv_op", "patch_size", "n_stages", "features_per_stage", "kernel_sizes", "strides")
        }
    )
    conv_op = arguments["conv_op"]
    own = {
        "patch_size": _plain(topology.patch_size),
        "features_per_stage": _plain(topology.features),
        "kernel_sizes": _plain(topology.kernel_sizes),
        "strides": _plain(topology.strides),
        "conv_op": f"{conv_op.__module__}.{conv_op.__name__}",
    }
    return {
        "network_class_name": f"{networks.__name__}.{network.__name__}",
        "arch_kwargs": {**arguments, **own},
        "_kw_requires_import": ["conv_op"],
    }


def _plain(values: Any) -> Any:
    """Converts tuples of numbers into lists of Python integers, as JSON has them."""
    return [_plain(value) for value in values] if isinstance(values, tuple) else int(values)
