"""Pictures of the best, the median and the worst case of each method: truth beside prediction."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.result import Outcome
from nnunet_ext.compare.study import Case
from nnunet_ext.nnunet.geometry import LIMIT, Grid, grid_of, placement
from nnunet_ext.nnunet.label_maps import read_pair

LABEL_COLOURS = ("#ffb000", "#4cc9f0", "#ff6fae", "#9be564", "#c69cff", "#ff8552", "#5eead4", "#f4e04d")
_BACKGROUND = "#101418"
_MARGIN = 0.35


@dataclass(frozen=True)
class Overlay:
    """One picture.

    Attributes:
        method: Method that made the prediction.
        rank: best, median or worst.
        case: The case's name.
        caption: The case, its Dice and the slice.
        description: Text alternative.
        png: The picture, in base64.
    """

    method: str
    rank: str
    case: str
    caption: str
    description: str
    png: str


def overlays(outcome: Outcome) -> list[Overlay]:
    """Three pictures per method, of the cases with the highest, middle and lowest mean Dice."""
    made = []
    for method in outcome.study.methods:
        scores = outcome.analysis.case_scores[method.name, PRIMARY]
        names = list(method.cases)
        order = [i for i in np.argsort(-scores, kind="stable") if np.isfinite(scores[i])]
        chosen = dict(zip(("best", "median", "worst"), (0, len(order) // 2, -1), strict=True)) if order else {}
        for rank, position in chosen.items():
            index = order[position]
            case = method.cases[names[index]]
            made.append(_overlay(method.name, rank, case, float(scores[index]), outcome.study.labels))
    return made


def _overlay(method: str, rank: str, case: Case, score: float, labels: LabelSet) -> Overlay:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader = recursive_find_reader_writer_by_name(labels.reader)()
    truth, prediction = read_pair(reader, case.truth, case.prediction, labels.values)
    axis, index = chosen_slice(truth.values, prediction.values, truth.properties["spacing"])
    maps = [np.take(volume.values, index, axis) for volume in (truth, prediction)]
    image = _image(reader, case.image, axis, index, truth.grid)
    spacing = np.delete(np.asarray(truth.properties["spacing"], dtype=float), axis)
    window = _window((maps[0] > 0) | (maps[1] > 0))
    size = truth.values.shape[axis]
    dice = METRICS[PRIMARY].shown(score)
    where = f"slice {index + 1} of {size} along axis {axis + 1}"
    return Overlay(
        method,
        rank,
        case.name,
        f"{case.name}: Dice {dice}, {where}" + ("" if case.image else " (no image found)"),
        f"{rank.capitalize()} case of {method}, {case.name}, {where}: outlines of the true labels on the left, of the "
        f"prediction on the right. Mean Dice {dice}.",
        _picture(image[window], [each[window] for each in maps], spacing, labels),
    )


def chosen_slice(truth: NDArray[np.integer], prediction: NDArray[np.integer], spacing: Any) -> tuple[int, int]:
    """Axis and index of a slice: across the thickest voxels, where both maps together have most foreground."""
    axis = truth.shape.index(1) if 1 in truth.shape else int(np.argmax(spacing))
    others = tuple(other for other in range(truth.ndim) if other != axis)
    amount = ((truth > 0).astype(int) + (prediction > 0)).sum(axis=others)
    return axis, int(amount.argmax()) if amount.any() else len(amount) // 2


def _image(reader: Any, path: Path | None, axis: int, index: int, grid: Grid) -> NDArray[np.floating]:
    """The slice of the image on the truth's grid; black where there is none in the same space."""
    if path is not None:
        image, properties = reader.read_images([str(path)])
        found = placement(grid_of(properties, image.shape[1:]), grid)
        if found is not None and found.deviation <= LIMIT:
            return np.take(found.apply(image[0]), index, axis)
    return np.zeros(tuple(np.delete(grid.shape, axis)), dtype=np.float32)


def _window(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The foreground with a margin of about a third of its size; everything if there is none."""
    if not mask.any():
        return tuple(slice(None) for _ in mask.shape)
    result = []
    for axis, size in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        margin = max(4, round(_MARGIN * (found[-1] - found[0] + 1)))
        result.append(slice(max(0, found[0] - margin), min(size, found[-1] + margin + 1)))
    return tuple(result)


def _picture(
    image: NDArray[np.floating], maps: list[NDArray[np.integer]], spacing: NDArray[np.floating], labels: LabelSet
) -> str:
    aspect = float(spacing[0] / spacing[1])
    height, width = image.shape[0] * aspect, image.shape[1]
    figure = Figure(figsize=(5.6, min(5.6, max(1.6, 2.8 * height / width))), facecolor=_BACKGROUND)
    low, high = np.percentile(image, [1, 99])
    for number, (title, labelled) in enumerate(zip(("truth", "prediction"), maps, strict=True)):
        axes = figure.add_axes((0.005 + 0.5 * number, 0, 0.49, 1))
        axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        for index, value in enumerate(labels.labels.values()):
            mask = np.isin(labelled, value)
            if mask.any():
                padded = np.pad(mask, 1).astype(float)  # an outline also at the border
                extent = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
                shade = LABEL_COLOURS[index % len(LABEL_COLOURS)]
                axes.contour(*extent, padded, levels=[0.5], colors=[shade], linewidths=1.6)
        axes.set_axis_off()
        axes.set(xlim=(-0.5, mask.shape[1] - 0.5), ylim=(mask.shape[0] - 0.5, -0.5))
        ground = {"facecolor": _BACKGROUND, "alpha": 0.75, "edgecolor": "none", "pad": 3}
        axes.text(0.03, 0.97, title, color="white", fontsize=11, va="top", transform=axes.transAxes, bbox=ground)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=_BACKGROUND, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()
