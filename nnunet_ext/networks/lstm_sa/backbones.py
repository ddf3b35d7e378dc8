"""Networks that compute the features of slices: the plan's U-Net, MT-UNet, any class by its name, or a module."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.networks.lstm_sa.unet import UNet2d
from nnunet_ext.networks.mt_unet import MTUNet
from nnunet_ext.networks.own import accepted, check_arguments, locate_network, takes
from nnunet_ext.networks.topology import Topology
from nnunet_ext.utils.fake_modules import built_on_fake_tensors
from nnunet_ext.utils.torch_private import FakeTensorMode

MT_UNET = "mt_unet"
_MT_UNET_CHANNELS = 64


def build_backbone(
    backbone: nn.Module | str | None,
    arguments: Mapping[str, Any] | None,
    *,
    input_channels: int,
    widths: int | Sequence[int],
    topology: Topology | None,
) -> tuple[nn.Module, tuple[int, ...]]:
    """Returns the backbone, and the channels of the maps that it returns.

    Args:
        backbone: As in `SALSTM`.
        arguments: As `backbone_arguments` in `SALSTM`.
        input_channels: M.
        widths: Channels per level; the first is C.
        topology: The in-plane topology; None: any size.

    Raises:
        ValueError: for an unknown name, a missing patch size, arguments that the class does not take, or maps that do
            not have the size of a slice.
    """
    if arguments and not _is_dotted(backbone):
        raise ValueError(
            f"`backbone_arguments`={dict(arguments)} need a `backbone` that names a class, not {backbone!r}"
        )
    if isinstance(backbone, nn.Module):
        return backbone, (widths,) if isinstance(widths, int) else tuple(widths)
    if backbone not in (None, MT_UNET) and not _is_dotted(backbone):
        raise ValueError(
            f"unknown `backbone` {backbone!r}; known: None (the plan's U-Net), {MT_UNET!r}, or a module, or the dotted "
            "name of a class, monai.networks.nets.BasicUNetPlusPlus for instance"
        )
    if topology is None:
        raise ValueError("`patch_size` must be given, except for a backbone that is a module")
    if backbone is None:
        return _unet(input_channels, topology)
    if backbone == MT_UNET:
        return MTUNet(input_channels, _MT_UNET_CHANNELS, topology.patch_size[-2:]), (_MT_UNET_CHANNELS,)
    return _named(backbone, arguments or {}, input_channels, topology)


def _is_dotted(backbone: nn.Module | str | None) -> bool:
    return isinstance(backbone, str) and "." in backbone


def _in_plane(topology: Topology) -> dict[str, Any]:
    """Kernels and strides in the plane of the slices."""
    kernels, strides = ([per_axis[-2:] for per_axis in v] for v in (topology.kernel_sizes, topology.strides))
    return {"kernel_sizes": kernels, "strides": strides}


def _unet(input_channels: int, topology: Topology) -> tuple[nn.Module, tuple[int, ...]]:
    if max(topology.sizes[-1][-2:]) == 1:
        raise ValueError(
            f"`patch_size`={topology.patch_size} leaves one voxel at the lowest level, where instance norm has no "
            "variance; use fewer stages or a larger patch"
        )
    return UNet2d(input_channels, topology.features, **_in_plane(topology)), topology.features[:-1]


def _named(
    name: str, given: Mapping[str, Any], input_channels: int, topology: Topology
) -> tuple[nn.Module, tuple[int, ...]]:
    """A class of any library, whose C "classes" are the features; parameters that these do not need are frozen."""
    network = locate_network(name, "backbone")
    size, channels = topology.patch_size[-2:], topology.features[0]
    known: dict[str, Any]
    if takes(network, "n_stages"):  # nnU-Net's vocabulary
        known = topology.arguments() | _in_plane(topology)
        known |= {"input_channels": input_channels, "num_classes": channels, "patch_size": size, "conv_op": nn.Conv2d}
    else:  # MONAI's, and that of PyTorch's convolutions
        known = {"in_channels": input_channels, "out_channels": channels, "spatial_dims": 2, "img_size": size}
    arguments = accepted(network, known | {"deep_supervision": False}) | dict(given)
    check_arguments(network, arguments, "`backbone_arguments`")
    try:
        shape, used = _traced(network, arguments, input_channels, size)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"`backbone`={name!r} does not work on slices of {size[0]} x {size[1]}: {error}; use another patch "
            "size, or other `backbone_arguments`"
        ) from error
    if len(shape) != 4 or shape[2:] != size:
        raise ValueError(
            f"`backbone`={name!r} returns maps of shape {shape} for slices of {size[0]} x {size[1]}: they must have "
            "the size of a slice"
        )
    module = network(**arguments)
    for parameter_name, parameter in module.named_parameters():
        # A distributed training expects a gradient for every parameter that it trains.
        parameter.requires_grad_(parameter.requires_grad and parameter_name in used)
    return module, (shape[1],)


def _traced(
    network: type[nn.Module], arguments: Mapping[str, Any], input_channels: int, size: Sequence[int]
) -> tuple[tuple[int, ...], set[str]]:
    """Shape of the finest map, and names of the parameters that it depends on, from a pass on fake tensors."""
    with FakeTensorMode(), torch.device("cpu"), torch.enable_grad():
        module = built_on_fake_tensors(lambda: network(**arguments))
        maps: Any = module(torch.empty(2, input_channels, *size))
        finest: Tensor = maps[0] if isinstance(maps, (list, tuple)) else maps
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(finest.sum(), list(parameters.values()), allow_unused=True)
    used = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    return tuple(finest.shape), used
