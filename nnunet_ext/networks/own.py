"""Network classes by name: those of this package, of a library, or of a user's own file."""

import pydoc
from importlib import util
from inspect import Parameter, Signature, signature
from typing import Any

from torch import nn

from nnunet_ext import networks

_EXTRAS = {"monai": "baselines"}
"""Optional packages that networks come from, and the extra of this package that installs each."""


def locate_network(network: type[nn.Module] | str, setting: str = "network_class") -> type[nn.Module]:
    """The class itself; a dotted name such as ``"monai.networks.nets.UNet"`` is imported.

    Args:
        network: A class, or its name.
        setting: Name of the user's setting, for the message.

    Raises:
        ValueError: if there is no such class; the message says why.
    """
    if not isinstance(network, str):
        return network
    reason = "there is no such class"
    try:
        found = pydoc.locate(network)
    except pydoc.ErrorDuringImport as error:
        found, reason = None, str(error)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    package = network.partition(".")[0]
    raise ValueError(f"`{setting}`={network!r} cannot be imported: {reason}; {_remedy(package)}")


def _remedy(package: str) -> str:
    if util.find_spec(package) is not None:
        return f"is {package} up to date?"
    if package in _EXTRAS:
        return f'{package} is not installed: pip install "nnunet_ext[{_EXTRAS[package]}]"'
    return f"is {package} installed?"


def is_ours(network: type[nn.Module]) -> bool:
    """Whether a class is one of `nnunet_ext.networks`."""
    return getattr(networks, network.__name__, None) is network


def network_name(network: type[nn.Module]) -> str:
    """The name by which a plan refers to a network: our public name, or the module and name of any other class."""
    if is_ours(network):
        return f"{networks.__name__}.{network.__name__}"
    return f"{network.__module__}.{network.__qualname__}"


def is_named(network: type[nn.Module], name: str) -> bool:
    """Whether a plan's `network_class_name` means this class.

    Names are compared first: a class in a trainer's file cannot be imported by the name of its module.
    """
    if name == network_name(network):
        return True
    try:
        return pydoc.locate(name) is network
    except pydoc.ErrorDuringImport:
        return False


def takes(network: type[nn.Module], argument: str) -> bool:
    """Whether a constructor has a parameter of this name."""
    return argument in signature(network).parameters


def check_arguments(
    network: type[nn.Module], arguments: dict[str, Any], given_by: str = "`network_arguments` on the trainer"
) -> None:
    """Checks that a constructor can be called with these arguments.

    Args:
        network: A class.
        arguments: Arguments by name.
        given_by: Where a user gives them, for the message.

    Raises:
        ValueError: with the argument that is missing or unknown, and the constructor's parameters.
    """
    constructor = signature(network)
    try:
        constructor.bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{network.__name__} cannot be built: {error}; it takes {_shown(constructor)}, and gets "
            f"{', '.join(arguments)}; define {given_by}"
        ) from None


def accepted(network: type[nn.Module], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that a constructor takes, of those given."""
    parameters = signature(network).parameters
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def _shown(constructor: Signature) -> str:
    return ", ".join(
        name if p.default is Parameter.empty else f"{name}={p.default!r}" for name, p in constructor.parameters.items()
    )
