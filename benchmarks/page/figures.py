"""The figures of the pages: SVG files whose metadata hold a hash of the numbers that they show.

A test compares the hash rather than the drawing, because matplotlib's versions draw the same numbers differently.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.page import architecture
from benchmarks.page.accuracy_tables import dice_of_trainings, mean_dice
from benchmarks.page.result_files import Results, in_order
from benchmarks.page.tables import STOCK, TRAINER_OF

Data = Mapping[str, Any]
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nnunet_ext",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_COLOURS = {
    STOCK: "#444444",
    "ResidualEncoderUNet": "#999999",
    "SASAN": "#0072b2",
    "EM-Net": "#d55e00",
    "SALSTM": "#56b4e9",
    "LSTMSA": "#009e73",
    "FAF-Net": "#cc79a7",
    "MT-UNet": "#e69f00",
    "U-Mamba Enc": "#332288",
    "U-Mamba Bot": "#117733",
    "U-Mamba Bot without Mamba": "#88ccee",
}
_NETWORK_OF = {trainer: network for network, trainer in TRAINER_OF.items()}
_DIGEST = re.compile(r"numbers sha256 ([0-9a-f]{64})")


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        name: Name of its file under docs/figures, without extension.
        alternative: Alternative text.
        data: Function from the results to the numbers shown, which are empty if they were not measured.
        draw: Function that draws the numbers.
        size: Width and height in inches.
    """

    name: str
    alternative: str
    data: Callable[[Results], Data]
    draw: Callable[[Figure, Data], None]
    size: tuple[float, float] = (7.6, 3.4)


def digest(data: Data) -> str:
    """The hash of the numbers that a figure shows."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def shown_digest(path: Path) -> str:
    """The hash stored in a figure's file.

    Raises:
        ValueError: if the file has no hash.
    """
    found = _DIGEST.search(path.read_text())
    if found is None:
        raise ValueError(f"{path} holds no hash of numbers; make it by `python -m benchmarks.page.results_page`")
    return found.group(1)


def save(plot: Plot, results: Results, folder: Path) -> Path | None:
    """Writes FOLDER/NAME.svg unless it already shows these numbers; returns None if there are no numbers."""
    data = plot.data(results)
    if not data:
        return None
    path = folder / f"{plot.name}.svg"
    if path.is_file() and shown_digest(path) == digest(data):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=plot.size, layout="constrained", facecolor="white")
        plot.draw(figure, data)
        metadata = {"Title": plot.alternative, "Description": f"numbers sha256 {digest(data)}", "Date": None}
        figure.savefig(path, metadata=metadata)
    return path


def _series(results: Results, name: str, x: str, *columns: str) -> dict[str, list[list[float]]]:
    """For each network, [x, column, column, ...] from every row that has values in all columns."""
    series: dict[str, list[list[float]]] = {}
    for row in results.rows(name):
        if all(row[column] for column in columns):
            series.setdefault(row["network"], []).append([float(row[column]) for column in (x, *columns)])
    return series


def _scaling_data(results: Results) -> Data:
    return _series(results, "scaling_cpu", "voxels", "seconds", "added_GB", "seconds_exponent", "added_GB_exponent")


def _draw_scaling(figure: Figure, data: Data) -> None:
    for axes, column, label in zip(
        figure.subplots(1, 2), (1, 2), ("seconds per training step", "memory, GB"), strict=True
    ):
        for network, points in data.items():
            exponent = f"{network} {points[0][column + 2]:.2f}"
            _line(axes, network, [p[0] for p in points], [p[column] for p in points], exponent)
        axes.set(xscale="log", yscale="log", xlabel="voxels per patch", ylabel=label)
        voxels = sorted({point[0] for points in data.values() for point in points})
        axes.set_xticks(voxels, [f"{number:,.0f}" for number in voxels])
        axes.minorticks_off()
        axes.legend(title="exponents", fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _tiles_data(results: Results) -> Data:
    return _series(results, "tiles_cpu", "tiles", "seconds", "min_s", "max_s")


def _draw_tiles(figure: Figure, data: Data) -> None:
    axes = figure.subplots()
    for network, points in data.items():
        x, median, low, high = (list(values) for values in zip(*points, strict=True))
        _line(axes, network, x, median, network)
        axes.fill_between(x, low, high, color=_COLOURS[network], alpha=0.15, linewidth=0)
    axes.set(xlabel="number of tiles", ylabel="prediction time, s", ylim=(0, None))
    axes.legend(fontsize=8)


def _cost_data(results: Results) -> Data:
    """For each precision and network, the training step's time relative to the stock network's and memory in GB."""
    steps = [row for row in results.rows("networks_cpu") if row["what"] == "training step" and row["mode"] == "eager"]
    data: dict[str, dict[str, list[float]]] = {}
    for row in steps:
        data.setdefault(row["precision"], {})[row["network"]] = [float(row[f"of_{STOCK}"]), float(row["added_GB"] or 0)]
    return data


def _draw_cost(figure: Figure, data: Data) -> None:
    networks = list(next(iter(data.values())))
    time, memory = figure.subplots(1, 2, sharey=True)
    for position, (precision, costs) in enumerate(data.items()):
        there = [(row, name) for row, name in enumerate(networks) if name in costs]
        places = [row + 0.8 * ((position + 0.5) / len(data) - 0.5) for row, _ in there]
        shade = {"color": [_COLOURS[name] for _, name in there], "alpha": 1 - 0.5 * position / len(data)}
        for axes, column in ((time, 0), (memory, 1)):
            bars = axes.barh(places, [costs[name][column] for _, name in there], 0.7 / len(data), **shade)
            axes.bar_label(bars, [f"{costs[name][column]:.2f} {precision}" for _, name in there], fontsize=6, padding=2)
    time.set_yticks(range(len(networks)), networks)
    time.invert_yaxis()
    time.set(xlabel=f"time per training step, relative to {STOCK}")
    memory.set(xlabel="memory of a training step, GB")
    for axes in (time, memory):
        axes.margins(x=0.35)


def _accuracy_data(results: Results) -> Data:
    """For each trainer, its network's time per training step relative to the stock network's, and of its trainings the
    mean, lowest and highest mean Dice."""
    costs = _cost_data(results).get("float32", {})
    dice = dice_of_trainings(results.rows("accuracy_hippocampus"), "mean")
    return {
        trainer: [costs[network][0], statistics.fmean(dice[trainer]), min(dice[trainer]), max(dice[trainer])]
        for network, trainer in TRAINER_OF.items()
        if network in costs and trainer in dice
    }


def _draw_accuracy(figure: Figure, data: Data) -> None:
    axes = figure.subplots()
    for trainer, (cost, dice, lowest, highest) in data.items():
        colour = _COLOURS[_NETWORK_OF[trainer]]
        axes.plot(cost, dice, "o", color=colour, label=trainer)
        axes.plot([cost, cost], [lowest, highest], "_-", color=colour, linewidth=1.3)
    # Names beside the points would overlap where networks cost nearly the same.
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.margins(0.15)
    axes.set(xlabel=f"time per training step, relative to {STOCK}", ylabel="mean Dice")


_CURVE_EPOCHS = 6


def _learning_data(results: Results) -> Data:
    """For each trainer, pseudo Dice against iterations, and the validation's mean Dice at the end.

    Each point is the mean over trainings and over the last `_CURVE_EPOCHS` epochs.
    """
    data: dict[str, dict[str, Any]] = {}
    means = [row for row in results.rows("accuracy_hippocampus_3000") if row["label"] == "mean"]
    dice = mean_dice(means)
    for trainer in in_order(row["trainer"] for row in means):
        mine = [row for row in means if row["trainer"] == trainer]
        curves = np.array([[float(value) for value in row["pseudo_dice_by_epoch"].split()] for row in mine])
        blocks = curves.mean(0).reshape(-1, _CURVE_EPOCHS).mean(1)
        iterations = np.linspace(0, int(mine[0]["iterations"]), len(blocks) + 1)[1:]
        points = [[int(x), float(y)] for x, y in zip(iterations, blocks, strict=True)]
        data[trainer] = {"points": points, "validation": dice[trainer]}
    return data


def _draw_learning(figure: Figure, data: Data) -> None:
    axes = figure.subplots()
    for position, (trainer, curve) in enumerate(data.items()):
        x, y = zip(*curve["points"], strict=True)
        axes.plot(x, y, "o-", color=f"C{position}", markersize=3, linewidth=1.3, label=trainer)
        axes.plot(x[-1] * 1.02, curve["validation"], "D", color=f"C{position}", markersize=5)
    axes.set(xlabel="training iterations", ylabel="mean Dice")
    axes.legend(fontsize=8, title="lines: pseudo Dice; diamonds: validation")


def _line(axes: Axes, network: str, x: list[float], y: list[float], label: str) -> None:
    axes.plot(x, y, "o-", color=_COLOURS[network], markersize=3, linewidth=1.3, label=label)


PLOTS: Mapping[str, Plot] = {
    plot.name: plot
    for plot in (
        Plot(
            "accuracy",
            "Mean Dice and its range over trainings against the time of a training step",
            _accuracy_data,
            _draw_accuracy,
        ),
        Plot("learning_curves", "Mean Dice of trainers against iterations", _learning_data, _draw_learning),
        Plot("cost", "Time and memory of training steps compared with nnU-Net's", _cost_data, _draw_cost),
        Plot("scaling", "Time and memory of training steps against the patch size", _scaling_data, _draw_scaling),
        Plot("tiles", "Prediction time against the number of tiles", _tiles_data, _draw_tiles),
        Plot(
            "architecture",
            "The layers of the package, from operators at the bottom to commands at the top",
            lambda results: architecture.layers(),
            architecture.draw,
            (7.6, 5.4),
        ),
    )
}
"""Plots by the name of their file."""
