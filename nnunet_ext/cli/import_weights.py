"""Convert published weights to a file for nnUNetv2_train -pretrained_weights."""

import argparse
from pathlib import Path
from typing import Any

from nnunet_ext.cli.names import IMPORTABLE, known_name, unknown_name
from nnunet_ext.nnunet.trainers import check_trainers_exist


def _stride(text: str) -> int | tuple[int, ...]:
    """An argument of --strides: a number for all axes, or one per axis, separated by commas."""
    first, *others = map(int, text.split(","))
    return (first, *others) if others else first


_NUMBER: dict[str, Any] = {"type": int}
_SIZES: dict[str, Any] = {"type": int, "nargs": "+"}
_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": (_NUMBER, "attention heads, if they cannot be inferred from the tensors (sasan)"),
    "patch_size": (_SIZES, "voxels per axis, if they cannot be inferred from the tensors (all but sasan)"),
    "strides": (
        {"type": _stride, "nargs": "+"},
        "strides of the plan, as 1 2 2, or per axis 1,1,1 1,2,2 2,2,2 (umamba_bot, umamba_enc; default: 1 2 2 ...)",
    ),
    "efl_layout": ({}, "layout of the frequency layers, authors or spatial (em_net; default: authors)"),
    "attention_size": (_NUMBER, "size in the attention's scale (salstm, lstmsa; default: 7744)"),
    "input_channels": (_NUMBER, "channels of the images (faf_net; default: 1)"),
    "num_classes": (_NUMBER, "number of outputs, including background (faf_net; default: 2)"),
    "filter_grid": (_SIZES, "grid of the filters, if it cannot be inferred from the tensors (faf_net)"),
}
"""Settings of `nnunet_ext.weights.from_authors`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "network",
        help="short name of the network, as `nnunet_ext networks` lists it, or mt_unet, for its authors' weights "
        "(U-Mamba's are umamba_bot and umamba_enc); or, with --plans, the name of a trainer, for weights that have the "
        "names of its network",
    )
    parser.add_argument("input", help="the published checkpoint (a state dict saved by torch)")
    parser.add_argument("output", help="file to write")
    for name, (options, text) in _SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options, help=text)
    trainers = parser.add_argument_group("with the name of a trainer")
    trainers.add_argument("-p", "--plans", type=Path, help="plans file, with dataset.json in the same folder")
    trainers.add_argument("-c", "--configuration", default="3d_fullres", help="default: %(default)s")
    trainers.add_argument(
        "--initial",
        nargs="+",
        default=[],
        metavar="NAME",
        help="parts of the names of weights that keep their initial values, such as the last layers for other classes",
    )


def run(arguments: argparse.Namespace) -> int:
    name = known_name(arguments.network, IMPORTABLE)
    if arguments.plans is not None and name is None:
        return _run_for_trainer(arguments)
    if name is None:
        raise unknown_name(arguments.network, IMPORTABLE, "; with --plans, the name of a trainer")
    if arguments.plans is not None or arguments.initial:
        raise ValueError(f"--plans and --initial are for the name of a trainer, not of the network {name}")
    from nnunet_ext.weights import from_authors, read_state_dict, write_pretrained
    from nnunet_ext.weights.suggest_trainer import suggest_trainer

    settings = {key: value for key in _SETTINGS if (value := getattr(arguments, key)) is not None}
    state_dict = read_state_dict(arguments.input)
    try:
        network = from_authors(name, state_dict, **settings)
    except ValueError as error:
        raise ValueError(f"{arguments.input}: {error}") from error
    write_pretrained(network, arguments.output)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"wrote {arguments.output}: {type(network).__name__}, {parameters:,} parameters")
    print(f"for a plan with patch size {getattr(network, 'patch_size', '?')} and the same stages and features")
    print(suggest_trainer(network))
    return 0


def _run_for_trainer(arguments: argparse.Namespace) -> int:
    check_trainers_exist([arguments.network])
    from nnunet_ext.nnunet.plan_settings import read_plan
    from nnunet_ext.weights import for_trainer, read_state_dict, write_pretrained

    foreign = [f"--{name.replace('_', '-')}" for name in _SETTINGS if getattr(arguments, name) is not None]
    if foreign:
        raise ValueError(f"{foreign[0]} is for the authors' weights; the network of a trainer follows its plan")
    setting = read_plan(arguments.plans, arguments.configuration)
    state_dict = read_state_dict(arguments.input)
    try:
        network = for_trainer(arguments.network, state_dict, setting, arguments.initial)
    except ValueError as error:
        raise ValueError(f"{arguments.input}: {error}") from error
    write_pretrained(network, arguments.output)
    name = setting.plans.plans_name
    print(f"wrote {arguments.output}: {type(network).__name__}")
    print(f"train with -tr {arguments.network} -p {name} -pretrained_weights {arguments.output}")
    return 0
