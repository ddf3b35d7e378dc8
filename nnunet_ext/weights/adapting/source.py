"""The file that weights are adapted from: its weights, and what it says about the network that they are from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.networks.adapting.tied import Geometry, geometry_of
from nnunet_ext.networks.own import is_ours
from nnunet_ext.nnunet.plan_settings import plan_setting
from nnunet_ext.nnunet.trainers import find_trainer, network_of
from nnunet_ext.utils.fake_modules import built_on_fake_tensors
from nnunet_ext.utils.torch_private import FakeTensorMode
from nnunet_ext.weights.files import GEOMETRY, read_safely, state_dict_of

_NETWORK = re.compile(r"(nnunet_ext\.networks|dynamic_network_architectures\.architectures\.\w+)\.\w+")
_MODULE = re.compile(r"torch\.nn\.(modules\.\w+\.)?[A-Z]\w*")
_WORDS = {"variant", "efl_layout", "encoder", "threshold_from"}
"""Arguments of our networks that may be text: names in tables of ours."""


@dataclass(frozen=True)
class Source:
    """Weights and their origin.

    Attributes:
        weights: Names and values.
        trainer: Name of the trainer; None: the file does not say.
        geometry: Geometry of the network that the weights are from, as far as it is known; see `adapt_weights`.
        extent: Size of its patch in mm, per axis; None: the file does not say.
    """

    weights: dict[str, Tensor]
    trainer: str | None
    geometry: dict[str, Geometry]
    extent: tuple[float, ...] | None


def read_source(path: str | Path, trainer: str | None = None) -> Source:
    """Reads a checkpoint of nnU-Net's, or a file of `write_pretrained`, without executing what it may contain.

    Args:
        path: The file.
        trainer: Trainer of the same network, in case the one that the file names is not installed here.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read safely or holds no weights.
    """
    content = read_safely(path)
    weights = state_dict_of(content, path)
    named = content.get("trainer_name")
    known, size = content.get(GEOMETRY), None
    if not isinstance(known, Mapping) or not all(isinstance(value, tuple) for value in known.values()):
        init_args = content.get("init_args")
        known, size = _of_plan(named, init_args) or _of_plan(trainer, init_args) or ({}, None)
    return Source(weights, named if isinstance(named, str) else None, dict(known), size)


def extent(configuration: Any) -> tuple[float, ...]:
    """Size of the patch in mm, per axis, in nnU-Net's ``ConfigurationManager``."""
    return tuple(n * mm for n, mm in zip(configuration.patch_size, configuration.spacing, strict=True))


def _of_plan(trainer: Any, init_args: Any) -> tuple[dict[str, Geometry], tuple[float, ...]] | None:
    """Geometry of the network that a trainer builds from a checkpoint's plan, and extent of its patch; None: unknown.

    The plan is as untrusted as the rest of the file, and building a network calls classes that plans name. So this is
    done for networks of ours only, which have the declarations anyway, and of the arguments in the plan only numbers,
    names in our own tables, and classes of torch.nn are used.
    """
    if not isinstance(trainer, str) or not isinstance(init_args, Mapping):
        return None
    try:
        found: Any = find_trainer(trainer)
        network_class = network_of(found)
        if network_class is None or not is_ours(network_class):
            return None
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        setting = plan_setting(
            PlansManager(dict(init_args["plans"])), init_args["configuration"], dict(init_args["dataset_json"])
        )
        _keep_harmless(setting.configuration.configuration["architecture"])
        with FakeTensorMode(), torch.device("cpu"):
            network = built_on_fake_tensors(lambda: setting.network(found, deep_supervision=True))
        size = extent(setting.configuration)
        return (geometry_of(network), size) if min(size) > 0 else None
    # An unknown trainer, a damaged plan, or one that the network refuses: then the tensors have to say it.
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError):
        return None


def _keep_harmless(architecture: dict[str, Any]) -> None:
    """Removes from a plan's `architecture` what could import or call anything but layers."""
    arguments = architecture["arch_kwargs"]
    classes = {
        key: arguments[key]
        for key in architecture["_kw_requires_import"]
        if isinstance(arguments.get(key), str) and _MODULE.fullmatch(arguments[key])
    }
    kept = {key: value for key, value in arguments.items() if _is_number(value) or (key in _WORDS)}
    architecture["arch_kwargs"] = kept | classes
    architecture["_kw_requires_import"] = list(classes)
    if not _NETWORK.fullmatch(architecture["network_class_name"]):
        raise ValueError(f"a network of another package: {architecture['network_class_name']}")


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or numbers in lists."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_number, value))
    return value is None or isinstance(value, (int, float))
