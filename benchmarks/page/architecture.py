"""The figure of the package's layers, drawn from the rules in pyproject.toml that import-linter enforces."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from importlinter.api import read_configuration
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[2]
_PACKAGE = "nnunet_ext."
_PURPOSES = {
    "cli": "commands",
    "compare": "statistics and report",
    "planning": "plans by traced memory",
    "training": "trainers of nnU-Net",
    "fewshot": "episodes and prototypes",
    "nnunet": "nnU-Net's files",
    "blocks": "shared by networks",
    "ops": "C, Triton, PyTorch",
    "utils": "files, processes, devices",
}
"""Short descriptions of the packages that have a layer of their own."""
_TOOLS, _NNUNET, _PLAIN = "#e8eaf6", "#fff3e0", "#e8f5e9"


def layers() -> dict[str, Any]:
    """The layers from top to bottom, each a list of packages, and the packages that may not import nnU-Net."""
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    (arrows,) = [contract for contract in contracts if contract["type"] == "layers"]
    (plain,) = [contract for contract in contracts if contract["type"] == "forbidden"]
    return {
        "layers": [[name.strip().removeprefix(_PACKAGE) for name in line.split("|")] for line in arrows["layers"]],
        "without nnU-Net": [name.removeprefix(_PACKAGE) for name in plain["source_modules"]],
    }


def draw(figure: Figure, data: Mapping[str, Any]) -> None:
    """Draws one row of boxes for each layer, and one arrow for the direction of imports."""
    axes = figure.subplots()
    axes.set_axis_off()
    rows = data["layers"]
    for height, names in enumerate(reversed(rows)):
        width = 10 / len(names)
        for position, name in enumerate(names):
            left = position * width + 0.05
            axes.add_patch(_box(left, height, width - 0.1, _colour(name, height, data)))
            purpose = f": {_PURPOSES[name]}" if name in _PURPOSES else ""
            axes.text(left + (width - 0.1) / 2, height + 0.4, f"{name}{purpose}", ha="center", va="center", fontsize=10)
    arrow = {"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.5}
    axes.annotate("", (10.3, 0.1), (10.3, len(rows) - 0.3), arrowprops=arrow)
    axes.text(10.45, len(rows) / 2, "imports", rotation=270, va="center", color="#555555", fontsize=10)
    handles = [_box(0, 0, 1, colour) for colour in (_TOOLS, _NNUNET, _PLAIN)]
    labels = ["commands, for any trainer", "networks as trainers", "independent of nnU-Net"]
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=3, fontsize=9)
    axes.set(xlim=(-0.1, 10.9), ylim=(-0.2, len(rows)))


def _box(left: float, bottom: float, width: float, colour: str) -> FancyBboxPatch:
    style = "round,pad=0,rounding_size=0.12"
    return FancyBboxPatch((left, bottom), width, 0.8, style, facecolor=colour, edgecolor="#777777", linewidth=0.8)


def _colour(name: str, height: int, data: Mapping[str, Any]) -> str:
    rows = data["layers"]
    if name in data["without nnU-Net"]:
        return _PLAIN
    above_training = len(rows) - 1 - height < next(i for i, names in enumerate(rows) if "training" in names)
    return _TOOLS if above_training else _NNUNET
