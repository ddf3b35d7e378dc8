"""What is measured on a case: Dice, surface Dice, Hausdorff distance, volume difference."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.compare.surface import normalised_surface_dice, robust_hausdorff, surfaces

VERSION = 2
"""Of the definitions: raised when one changes, so that cached values are computed anew."""

Label = int | tuple[int, ...]


@dataclass(frozen=True)
class Metric:
    """A quantity on which trainers are compared.

    Attributes:
        key: Its column.
        title: Its name on the page.
        unit: Of the shown values.
        higher_is_better: Its direction.
        scale: What the values are multiplied by to be shown.
        digits: Shown behind the decimal point.
    """

    key: str
    title: str
    unit: str
    higher_is_better: bool
    scale: float = 1.0
    digits: int = 2

    def shown(self, value: float, signed: bool = False) -> str:
        """A value as the report prints it; a dash if it is not there."""
        if value is None or not np.isfinite(value):
            return "\N{EN DASH}"
        rounded = round(value * self.scale, self.digits) + 0.0  # no minus before zero
        sign = "+" if signed and rounded > 0 else ""
        return f"{sign}{rounded:.{self.digits}f}".replace("-", "\N{MINUS SIGN}")


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.key: metric
        for metric in (
            Metric("dice", "Dice", "points", True, 100),
            Metric("nsd", "NSD", "points", True, 100),
            Metric("hd95", "HD95", "mm", False),
            Metric("volume_error", "Volume error", "ml", False, 1, 3),
        )
    }
)
PRIMARY = "dice"
"""The metric that gives the verdict; the others are reported beside it."""


@dataclass(frozen=True)
class LabelScores:
    """One case and label.

    Attributes:
        dice: 2 |T and P| / (|T| + |P|), from 0 to 1; 0 if one of both is empty, NaN if both are.
        nsd: Surface Dice at the tolerance, from 0 to 1; 0 if one of both is empty, NaN if both are.
        hd95: 95th percentile of the surface distance, in mm; NaN if one of both or both are empty.
        volume_difference: |P| - |T|, in ml (of a single slice 1000 mm^2); NaN if both are empty.
        volume_error: Its absolute value.
        truth_voxels: |T|, voxels with the ignore label left out.
        predicted_voxels: |P|, likewise.
    """

    dice: float
    nsd: float
    hd95: float
    volume_difference: float
    volume_error: float
    truth_voxels: int
    predicted_voxels: int


def case_scores(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    spacing: Sequence[float],
    labels: Mapping[str, Label],
    ignore_label: int | None,
    tolerance: float,
) -> dict[str, dict[str, Any]]:
    """The scores of each label of one case.

    Voxels that carry the ignore label in the truth count in nothing: both masks are taken as empty there.

    Args:
        truth: Segmentation map.
        prediction: Segmentation map.
        spacing: Size of a voxel along each axis, in mm.
        labels: Value, or values of the region, of each label's name.
        ignore_label: Its value.
        tolerance: Of the surface Dice, in mm.

    Shape:
        maps (D, H, W); one of a single slice is measured in its plane.

    Raises:
        ValueError: if the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the prediction's shape {prediction.shape} differs from the label's {truth.shape}")
    counted = np.ones(truth.shape, dtype=bool) if ignore_label is None else truth != ignore_label
    # A natural image is a single slice, with a spacing of 999 across it: measured in its plane.
    if truth.shape[0] == 1:
        truth, prediction, counted, spacing = truth[0], prediction[0], counted[0], spacing[1:]
    voxel = float(np.prod(spacing)) / 1000
    scores = {}
    for name, label in labels.items():
        masks = [np.isin(each, label) & counted for each in (truth, prediction)]
        scores[name] = asdict(_label_scores(masks[0], masks[1], spacing, voxel, tolerance))
    return scores


def _label_scores(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float], voxel: float, tolerance: float
) -> LabelScores:
    hit, expected, predicted = (int(np.count_nonzero(mask)) for mask in (truth & prediction, truth, prediction))
    if expected + predicted == 0:
        nan = float("nan")
        return LabelScores(nan, nan, nan, nan, nan, 0, 0)
    difference = (predicted - expected) * voxel
    dice, nsd, hd95 = 2 * hit / (expected + predicted), 0.0, float("nan")
    if expected and predicted:
        pair = surfaces(truth, prediction, spacing)
        nsd, hd95 = normalised_surface_dice(*pair, tolerance), robust_hausdorff(*pair)
    return LabelScores(dice, nsd, hd95, difference, abs(difference), expected, predicted)
