"""The file that `nnunet_ext new` writes: a trainer with a network of the user's own, or of a library."""

import keyword
import re
from inspect import Parameter, signature
from pathlib import Path

from nnunet_ext.networks.own import locate_network
from nnunet_ext.nnunet.trainers import trainer_folder
from nnunet_ext.utils.files import replacing

_OF_DATA = {
    "input_channels": ("input_channels", "in_channels", "in_chans", "in_channel", "num_channels", "channels_in"),
    "num_classes": ("num_classes", "out_channels", "n_classes", "out_channel", "classes", "channels_out"),
    "topology.spatial_dims": ("spatial_dims", "dimensions", "ndim", "dims"),
}
"""Values that depend on the data, and the names that constructors have for them."""
_OF_PLAN = {
    "topology.patch_size": ("patch_size", "img_size", "image_size", "input_size"),
    "topology.n_stages": ("n_stages",),
    "topology.features": ("features_per_stage", "channels"),
    "topology.conv_op": ("conv_op",),
    "topology.kernel_sizes": ("kernel_sizes",),
    "topology.strides[1:]": ("strides",),  # without the first stage, into which nothing is pooled
}
"""Values of the plan, for parameters without a default."""
_NNUNETS = ("input_channels", "num_classes", "patch_size", "n_stages", "conv_op", "kernel_sizes", "strides")

_HEAD = '''"""{name}: docs/own_network.md explains every line. Save your changes, then run: nnunet_ext check {name}"""
{imports}

{network}class {name}(PluginTrainer):
    network_class = {network_class}
    patch_multiple = 1  # sizes of a patch are multiples of this; planning learns it from errors if you leave it at 1
{arguments}'''
_OWN = '''class {network}(nn.Module):
    """Replace this by your network. It gets (B, C, *patch) and returns logits (B, K, *patch)."""

    def __init__(self, in_channels: int, out_channels: int, dims: int) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.layers = nn.Sequential(conv(in_channels, 16, 3, padding=1), nn.LeakyReLU(), conv(16, out_channels, 1))

    def forward(self, x):
        return self.layers(x)


'''
_ARGUMENTS = """
    @classmethod
    def network_arguments(cls, topology, input_channels, num_classes):
        # The constructor's arguments, from the plan: topology has patch_size, spatial_dims, n_stages, features,
        # kernel_sizes, strides and conv_op.
        return {{
{lines}
        }}
"""


def write_trainer(name: str, network: str | None, folder: Path) -> Path:
    """Writes FOLDER/NAME.py.

    Args:
        name: Name of the trainer's class and file.
        network: Dotted name of a class of a library; None: a small network in the file, to be replaced.
        folder: Folder of the user's trainers.

    Raises:
        ValueError: for a name that is none in Python or that another trainer has, or a class that cannot be imported.
        FileExistsError: if there is such a file.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name) or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no name of a class; use letters and digits, MyNetTrainer for instance")
    file = folder / f"{name}.py"
    if file.exists():
        raise FileExistsError(f"{file} exists already; remove it, or choose another name")
    taken = trainer_folder(name)
    if taken is not None:
        raise ValueError(f"there is a trainer {name} in {taken}; choose another name")
    text = _of_library(name, network) if network is not None else _of_own(name)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file, "w") as out:
        out.write(text)
    return file


def _of_own(name: str) -> str:
    network = f"{name.removesuffix('Trainer') or 'My'}Net".replace("NetNet", "Net")
    lines = _lines(
        {"in_channels": "input_channels", "out_channels": "num_classes", "dims": "topology.spatial_dims"}, []
    )
    return _HEAD.format(
        name=name,
        imports="\nfrom torch import nn\n\nfrom nnunet_ext.training import PluginTrainer\n",
        network=_OWN.format(network=network),
        network_class=network,
        arguments=_ARGUMENTS.format(lines=lines),
    )


def _of_library(name: str, network: str) -> str:
    constructor = signature(locate_network(network)).parameters
    required = [
        p.name
        for p in constructor.values()
        if p.default is Parameter.empty and p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    ]
    known = {name: source for source, names in _OF_DATA.items() for name in names if name in constructor}
    known |= {name: source for source, names in _OF_PLAN.items() for name in names if name in required}
    open_ones = [parameter for parameter in required if parameter not in known]
    follows = all(parameter in constructor for parameter in _NNUNETS) and not open_ones
    return _HEAD.format(
        name=name,
        imports="\nfrom nnunet_ext.training import PluginTrainer\n",
        network="",
        network_class=f'"{network}"  # imported where it is used',
        arguments="" if follows else _ARGUMENTS.format(lines=_lines(known, open_ones)),
    )


def _lines(known: dict[str, str], open_ones: list[str]) -> str:
    lines = [f'            "{parameter}": {source},' for parameter, source in known.items()]
    lines += [f'            "{parameter}": ...,  # to be filled in' for parameter in open_ones]
    return "\n".join(lines)
