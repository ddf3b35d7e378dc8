"""Metrics of a case: Dice, surface Dice, Hausdorff distance, mean surface distance, volume difference."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.compare.lesions import count_lesions
from nnunet_ext.compare.surface import mean_surface_distance, normalised_surface_dice, robust_hausdorff, surfaces

VERSION = 2
"""Version of the definitions, raised when one changes, so that cached values are computed anew."""

Label = int | tuple[int, ...]


@dataclass(frozen=True)
class Metric:
    """A quantity on which trainers are compared.

    Attributes:
        key: Column of cases.csv.
        title: Name on the page.
        unit: Unit of the shown values.
        higher_is_better: Direction.
        best: Value of a case in which neither truth nor prediction has the label.
        pixel_unit: Unit for natural images, which have no millimetres; None where it is the same.
        scale: Factor from the stored to the shown values.
        digits: Number of decimals shown.
    """

    key: str
    title: str
    unit: str
    higher_is_better: bool
    best: float
    pixel_unit: str | None = None
    scale: float = 1.0
    digits: int = 2

    def shown(self, value: float, signed: bool = False) -> str:
        """A value as the report prints it; a dash if it does not exist."""
        if value is None or not np.isfinite(value):
            return "\N{EN DASH}"
        rounded = round(value * self.scale, self.digits) + 0.0  # no minus before zero
        sign = "+" if signed and rounded > 0 else ""
        return f"{sign}{rounded:.{self.digits}f}".replace("-", "\N{MINUS SIGN}")


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.key: metric
        for metric in (
            Metric("dice", "Dice", "points", True, 1, scale=100),
            Metric("nsd", "NSD", "points", True, 1, scale=100),
            Metric("hd95", "HD95", "mm", False, 0, "pixels"),
            Metric("assd", "ASSD", "mm", False, 0, "pixels"),
            Metric("volume_error", "Volume error", "ml", False, 0, "1000 pixels", digits=3),
        )
    }
)
PRIMARY = "dice"
"""The metric that gives the verdict; the others are reported beside it."""


@dataclass(frozen=True)
class LabelScores:
    """Scores of one case and label.

    Attributes:
        dice: 2 |T and P| / (|T| + |P|), from 0 to 1; 0 if one of both is empty, NaN if both are, as nnU-Net's.
        nsd: Surface Dice at the tolerance, from 0 to 1; 0 if one of both is empty, NaN if both are.
        hd95: 95th percentile of the surface distance, in mm; the image's diagonal if one of both is empty, NaN if both
            are.
        assd: Mean surface distance over both surfaces, in mm; likewise.
        volume_difference: |P| - |T|, in ml (for a single slice in 1000 mm^2); NaN if both are empty.
        volume_error: Absolute value of `volume_difference`.
        truth_voxels: |T|, without voxels of the ignore label.
        predicted_voxels: |P|, likewise.
    """

    dice: float
    nsd: float
    hd95: float
    assd: float
    volume_difference: float
    volume_error: float
    truth_voxels: int
    predicted_voxels: int


def case_scores(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    spacing: Sequence[float],
    *,
    labels: Mapping[str, Label],
    tolerances: Mapping[str, float],
    ignore_label: int | None = None,
    lesions: Collection[str] = (),
) -> dict[str, dict[str, Any]]:
    """The scores of each label of one case: the fields of `LabelScores` and, where asked for, of `LesionCounts`.

    Voxels that carry the ignore label in the truth do not count: both masks are empty there.

    Args:
        truth: Segmentation map.
        prediction: Segmentation map.
        spacing: Size of a voxel along each axis, in mm.
        labels: Value, or values of the region, by the label's name.
        tolerances: Tolerance of the surface Dice by the label's name, in mm.
        ignore_label: Value of the ignore label; None: no label is ignored.
        lesions: Names of the labels whose lesions are counted.

    Shape:
        maps (D, H, W); a single slice is measured in its plane.

    Raises:
        ValueError: if the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the prediction's shape {prediction.shape} differs from the label's {truth.shape}")
    # A natural image is a single slice, with a spacing of 999 across it: measured in its plane.
    if truth.shape[0] == 1:
        truth, prediction, spacing = truth[0], prediction[0], spacing[1:]
    truth, prediction = _small(truth), _small(prediction)
    if ignore_label is not None:
        prediction = np.where(truth == ignore_label, 0, prediction)
    boxes = [ndimage.find_objects(each) for each in (truth, prediction)]
    worst = float(np.linalg.norm(np.multiply(truth.shape, spacing)))
    voxel = float(np.prod(spacing)) / 1000
    scores = {}
    for name, label in labels.items():
        values = label if isinstance(label, tuple) else (label,)
        # Everything but the box around the label is background in both maps.
        window = _union([found[v - 1] for found in boxes for v in values if 0 < v <= len(found)], truth.ndim)
        masks = [_mask(each[window], values) for each in (truth, prediction)]
        scores[name] = asdict(
            _label_scores(masks[0], masks[1], spacing=spacing, voxel=voxel, tolerance=tolerances[name], worst=worst)
        )
        if name in lesions:
            scores[name] |= count_lesions(masks[0], masks[1], voxel).columns()
    return scores


def _small(values: NDArray[Any]) -> NDArray[np.integer]:
    """Readers give floating-point maps; labels nearly always fit into a byte."""
    if values.dtype == np.uint8:
        return values
    whole = values if np.issubdtype(values.dtype, np.integer) else values.astype(np.int32)
    return whole.astype(np.uint8) if whole.size and whole.min() >= 0 and whole.max() < 256 else whole.astype(np.int32)


def _union(boxes: Sequence[tuple[slice, ...] | None], axes: int) -> tuple[slice, ...]:
    there = [box for box in boxes if box is not None]
    if not there:
        return (slice(0, 0),) * axes
    return tuple(slice(min(p.start for p in parts), max(p.stop for p in parts)) for parts in zip(*there, strict=True))


def _mask(values: NDArray[np.integer], label: tuple[int, ...]) -> NDArray[np.bool_]:
    return values == label[0] if len(label) == 1 else np.isin(values, label)


def _label_scores(
    truth: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    *,
    spacing: Sequence[float],
    voxel: float,
    tolerance: float,
    worst: float,
) -> LabelScores:
    hit, expected, predicted = (int(np.count_nonzero(mask)) for mask in (truth & prediction, truth, prediction))
    if expected + predicted == 0:
        nan = float("nan")
        return LabelScores(nan, nan, nan, nan, nan, nan, 0, 0)
    difference = (predicted - expected) * voxel
    dice, nsd, hd95, assd = 2 * hit / (expected + predicted), 0.0, worst, worst
    if expected and predicted:
        pair = surfaces(truth, prediction, spacing)
        nsd, hd95 = normalised_surface_dice(*pair, tolerance), robust_hausdorff(*pair)
        assd = mean_surface_distance(*pair)
    return LabelScores(dice, nsd, hd95, assd, difference, abs(difference), expected, predicted)
