"""Pictures of the cases with the best, the median and the worst difference: truth beside predictions."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.metrics import METRICS, PRIMARY
from nnunet_ext.compare.report.planes import slice_text
from nnunet_ext.compare.result import Outcome
from nnunet_ext.nnunet.geometry import LIMIT, Grid, grid_of, has_position, placement
from nnunet_ext.nnunet.label_maps import read_pair

LABEL_COLOURS = ("#ffb000", "#4cc9f0", "#ff6fae", "#9be564", "#c69cff", "#ff8552", "#5eead4", "#f4e04d")
_BACKGROUND = "#101418"
_MARGIN = 0.35
_PANEL = 3.2  # width of a picture's panel, in inches
_TALLEST = 6.0
_WORTH_ENLARGING = 0.7


@dataclass(frozen=True)
class Scene:
    """One slice of one case: the image, the truth and the prediction of every method.

    Attributes:
        rank: best, median or worst difference.
        case: The case's name.
        where: Modality, plane and number of the slice.
        image: (H, W), or (H, W, 3) of a colour image; black if there is none.
        has_image: Whether an image was found.
        truth: (H, W), true labels.
        predictions: (H, W), predicted labels of every method.
        dice: Mean Dice of every method as text.
        spacing: Size of a pixel in mm, (rows, columns).
        window: The part of the slice around the labels.
    """

    rank: str
    case: str
    where: str
    image: NDArray[np.floating]
    has_image: bool
    truth: NDArray[np.integer]
    predictions: Mapping[str, NDArray[np.integer]]
    dice: Mapping[str, str]
    spacing: tuple[float, float]
    window: tuple[slice, slice]

    @property
    def is_enlarged(self) -> bool:
        """Whether the window is so much smaller than the slice that both are worth showing."""
        return self.truth[self.window].size < _WORTH_ENLARGING * self.truth.size


@dataclass(frozen=True)
class Overlay:
    """One picture of the page.

    Attributes:
        title: What it shows: the whole slice, or a method.
        caption: The case's Dice, or the slice.
        description: Text alternative.
        png: The picture, in base64.
    """

    title: str
    caption: str
    description: str
    png: str


def scenes(outcome: Outcome) -> list[Scene]:
    """The cases with the best, the median and the worst difference.

    The difference of a case is that of the challengers' mean Dice to the baseline's.
    """
    study = outcome.study
    differences = np.mean([outcome.analysis.case_differences[name] for name in study.challengers], axis=0)
    order = [i for i in np.argsort(-differences, kind="stable") if np.isfinite(differences[i])]
    chosen = dict(zip(("best", "median", "worst"), (0, len(order) // 2, -1), strict=True)) if order else {}
    names = list(study.cases)
    return [_scene(outcome, rank, names[order[position]]) for rank, position in chosen.items()]


def _scene(outcome: Outcome, rank: str, name: str) -> Scene:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    labels = outcome.study.labels
    reader = recursive_find_reader_writer_by_name(labels.reader)()
    cases = {method.name: method.cases[name] for method in outcome.study.methods}
    pairs = {who: read_pair(reader, case.truth, case.prediction, labels.values) for who, case in cases.items()}
    truth = next(iter(pairs.values()))[0]
    predicted = np.any([prediction.values > 0 for _, prediction in pairs.values()], axis=0)
    axis, index = chosen_slice(truth.values, predicted, truth.properties["spacing"])
    rows, columns = np.delete(np.asarray(truth.properties["spacing"], dtype=float), axis)
    image_file = next(iter(cases.values())).image
    position = list(outcome.study.cases).index(name)
    scores = {who: float(outcome.analysis.case_scores[who, PRIMARY][position]) for who in cases}
    return Scene(
        rank,
        name,
        slice_text(labels.channel, truth.properties, truth.grid, axis, index),
        _image(reader, image_file, axis, index, truth.grid),
        image_file is not None,
        np.take(truth.values, index, axis),
        {who: np.take(prediction.values, index, axis) for who, (_, prediction) in pairs.items()},
        {who: METRICS[PRIMARY].shown(score) for who, score in scores.items()},
        (float(rows), float(columns)),
        _window(np.take((truth.values > 0) | predicted, index, axis)),
    )


def chosen_slice(truth: NDArray[np.integer], prediction: NDArray[np.integer], spacing: Any) -> tuple[int, int]:
    """Axis and index of a slice: across the thickest voxels, where both maps together have most foreground."""
    axis = truth.shape.index(1) if 1 in truth.shape else int(np.argmax(spacing))
    others = tuple(other for other in range(truth.ndim) if other != axis)
    amount = ((truth > 0).astype(int) + (prediction > 0)).sum(axis=others)
    return axis, int(amount.argmax()) if amount.any() else len(amount) // 2


def _image(reader: Any, path: Path | None, axis: int, index: int, grid: Grid) -> NDArray[np.floating]:
    """The slice of the image on the truth's grid, with values from 0 to 1; black where there is none in its space."""
    black = np.zeros(tuple(np.delete(grid.shape, axis)), dtype=np.float32)
    if path is None:
        return black
    image, properties = reader.read_images([str(path)])
    found = placement(grid_of(properties, image.shape[1:]), grid)
    if found is None or found.deviation > LIMIT:
        return black
    if len(image) >= 3 and not has_position(properties):  # RGB, and opacity
        return np.stack([np.take(found.apply(channel), index, axis) for channel in image[:3]], -1) / 255
    values = np.take(found.apply(image[0]), index, axis)
    low, high = np.percentile(values, [1, 99])
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1)


def _window(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The foreground with a margin of about a third of its size; everything if there is none."""
    if not mask.any():
        return slice(0, mask.shape[0]), slice(0, mask.shape[1])
    result = []
    for axis, size in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        margin = max(4, round(_MARGIN * (found[-1] - found[0] + 1)))
        result.append(slice(int(max(0, found[0] - margin)), int(min(size, found[-1] + margin + 1))))
    return result[0], result[1]


def pictures(scene: Scene, labels: LabelSet) -> list[Overlay]:
    """Pictures of one case for the page: the whole slice, and for each method the enlarged part around labels."""
    where = scene.where + ("" if scene.has_image else " (no image found)")
    whole = f"Case {scene.case}, {scene.where}: the whole slice, true outlines, a frame around the enlarged part."
    made = []
    if scene.is_enlarged:
        made.append(Overlay("Whole slice", where, whole, _png(scene, {"truth": scene.truth}, labels, enlarged=False)))
    for method, prediction in scene.predictions.items():
        maps = {"truth": scene.truth, "prediction": prediction}
        text = (
            f"Case {scene.case}, {scene.where}, enlarged: outlines of the true labels on the left, of the prediction "
            f"of {method} on the right. Mean Dice {scene.dice[method]}."
        )
        caption = f"Dice {scene.dice[method]}" + ("" if scene.is_enlarged else f", {where}")
        made.append(Overlay(method, caption, text, _png(scene, maps, labels)))
    return made


def paint_scene(scene: Scene, labels: LabelSet) -> Figure:
    """One row for a paper: the whole slice, the truth, and the prediction of every method, enlarged."""
    panels = {"truth": scene.truth} | {f"{who}, Dice {scene.dice[who]}": m for who, m in scene.predictions.items()}
    number = len(panels) + scene.is_enlarged
    figure = _figure(scene, number, scene.window)
    axes = _panels(figure, number)
    if scene.is_enlarged:
        _show(axes[0], scene, scene.truth, labels, None)
        _title(axes[0], f"{scene.case}: {scene.where}")
    else:
        panels = {f"{scene.case}: {scene.where}, truth": panels.pop("truth"), **panels}
    for each, (title, labelled) in zip(axes[-len(panels) :], panels.items(), strict=True):
        _show(each, scene, labelled, labels, scene.window)
        _title(each, title)
    return figure


def _png(scene: Scene, maps: Mapping[str, NDArray[np.integer]], labels: LabelSet, enlarged: bool = True) -> str:
    window = scene.window if enlarged else None
    figure = _figure(scene, 2, window)  # a single panel too, so that all pictures of a row have one size
    for axes, (title, labelled) in zip(_panels(figure, len(maps)), maps.items(), strict=True):
        _show(axes, scene, labelled, labels, window)
        _title(axes, title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=_BACKGROUND, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def _figure(scene: Scene, columns: int, window: tuple[slice, slice] | None) -> Figure:
    """An empty figure in which so many panels of the window's shape stand beside each other."""
    part = scene.truth if window is None else scene.truth[window]
    height = _PANEL * part.shape[0] * scene.spacing[0] / (part.shape[1] * scene.spacing[1])
    return Figure(figsize=(columns * _PANEL, min(_TALLEST, max(1.8, height))), facecolor=_BACKGROUND)


def _panels(figure: Figure, number: int) -> list[Axes]:
    return [figure.add_axes(((i + 0.01) / number, 0, 0.98 / number, 1)) for i in range(number)]


def _show(
    axes: Axes, scene: Scene, labelled: NDArray[np.integer], labels: LabelSet, window: tuple[slice, slice] | None
) -> None:
    """The image with the outlines of a label map; of all of it, with a frame around the scene's window, or a part."""
    part = window or (slice(0, labelled.shape[0]), slice(0, labelled.shape[1]))
    aspect = scene.spacing[0] / scene.spacing[1]
    axes.imshow(scene.image[part], cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
    for index, value in enumerate(labels.labels.values()):
        mask = np.isin(labelled[part], value)
        if mask.any():
            padded = np.pad(mask, 1).astype(float)  # an outline also at the border
            extent = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
            shade = LABEL_COLOURS[index % len(LABEL_COLOURS)]
            axes.contour(*extent, padded, levels=[0.5], colors=[shade], linewidths=1.6)
    rows, columns = labelled[part].shape
    if window is None:
        top, left = (each.start for each in scene.window)
        size = scene.window[1].stop - left, scene.window[0].stop - top
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor="white", linewidth=1))
    axes.set_axis_off()
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def _title(axes: Axes, title: str) -> None:
    ground = {"facecolor": _BACKGROUND, "alpha": 0.75, "edgecolor": "none", "pad": 3}
    axes.text(0.03, 0.97, title, color="white", fontsize=10, wrap=True, va="top", transform=axes.transAxes, bbox=ground)
