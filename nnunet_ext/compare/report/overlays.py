"""Pictures of the cases with the best, the median and the worst difference: truth beside prediction."""

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
        rank: best, median or worst difference.
        case: The case's name.
        caption: The case's Dice and the slice.
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
    """A row of pictures, one per method, of the cases with the best, the median and the worst difference.

    The difference of a case is that of the challengers' mean Dice to the baseline's.
    """
    study = outcome.study
    differences = np.mean([outcome.analysis.case_differences[name] for name in study.challengers], axis=0)
    order = [i for i in np.argsort(-differences, kind="stable") if np.isfinite(differences[i])]
    chosen = dict(zip(("best", "median", "worst"), (0, len(order) // 2, -1), strict=True)) if order else {}
    names = list(study.cases)
    return [each for rank, position in chosen.items() for each in _row(outcome, rank, names[order[position]])]


def _row(outcome: Outcome, rank: str, name: str) -> list[Overlay]:
    """Pictures of one case: the same slice and the same part of it for every method."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    labels = outcome.study.labels
    reader = recursive_find_reader_writer_by_name(labels.reader)()
    cases = {method.name: method.cases[name] for method in outcome.study.methods}
    pairs = {who: read_pair(reader, case.truth, case.prediction, labels.values) for who, case in cases.items()}
    truth = next(iter(pairs.values()))[0]
    predicted = np.any([prediction.values > 0 for _, prediction in pairs.values()], axis=0)
    axis, index = chosen_slice(truth.values, predicted, truth.properties["spacing"])
    spacing = np.delete(np.asarray(truth.properties["spacing"], dtype=float), axis)
    window = _window(np.take((truth.values > 0) | predicted, index, axis))
    where = f"slice {index + 1} of {truth.values.shape[axis]} along axis {axis + 1}"
    image_file = next(iter(cases.values())).image
    image = _image(reader, image_file, axis, index, truth.grid)[window]
    made = []
    for who, pair in pairs.items():
        score = outcome.analysis.case_scores[who, PRIMARY][list(outcome.study.cases).index(name)]
        dice = METRICS[PRIMARY].shown(float(score))
        maps = [np.take(volume.values, index, axis)[window] for volume in pair]
        made.append(
            Overlay(
                who,
                rank,
                name,
                f"Dice {dice}, {where}" + ("" if image_file else " (no image found)"),
                f"Case {name}, {where}: outlines of the true labels on the left, of the prediction of {who} on the "
                f"right. Mean Dice {dice}.",
                _picture(image, maps, spacing, labels),
            )
        )
    return made


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
