"""Detection of lesions: recall, precision, F1 and recall by volume of each case."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext.compare.lesions import BAND_EDGES, BANDS, column_names
from nnunet_ext.compare.metrics import METRICS, Metric


def _band_title(band: int, in_pixels: bool = False) -> str:
    unit, scale = ("pixels", 1000) if in_pixels else ("ml", 1)
    low, high = (
        f"{scale * edge:g}" for edge in (BAND_EDGES[max(band - 2, 0)], BAND_EDGES[min(band, len(BANDS) - 1) - 1])
    )
    if band == 1:
        return f"recall, below {high} {unit}"
    return f"recall, from {low} {unit}" if band == len(BANDS) else f"recall, {low} to {high} {unit}"


LESION_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.key: metric
        for metric in (
            Metric("lesion_f1", "F1", "points", True, 1, scale=100),
            Metric("lesion_recall", "recall", "points", True, float("nan"), scale=100),
            Metric("lesion_precision", "precision", "points", True, 1, scale=100),
            *(
                Metric(f"lesion_recall_{band}", _band_title(band), "points", True, float("nan"), scale=100)
                for band in BANDS
            ),
        )
    }
)
ALL_METRICS: Mapping[str, Metric] = MappingProxyType({**METRICS, **LESION_METRICS})


def lesion_title(key: str, in_pixels: bool) -> str:
    """Title of a lesion metric; volumes of natural images are in pixels."""
    bands = {f"lesion_recall_{band}": band for band in BANDS}
    return _band_title(bands[key], in_pixels) if key in bands else LESION_METRICS[key].title


def add_lesion_metrics(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with the columns of `LESION_METRICS`, if lesions were counted.

    With n true, p predicted and f found lesions of a case: recall f / n, precision f / p, F1 2 f / (n + p). Recall does
    not exist in a case without a (volume band's) true lesion. Precision is 0 where nothing is predicted although there
    are lesions, so that a prediction never decides whether a case counts. In a case without the label, precision and F1
    are 0 if any lesion is predicted, and NaN otherwise, like Dice.

    Args:
        scores: As `measure` returns them.
    """
    if not set(column_names()) <= set(scores.columns):
        return scores
    counted = {name: scores[name].to_numpy(dtype=float) for name in column_names()}
    true, found = (sum(counted[f"lesions_{what}_{band}"] for band in BANDS) for what in ("true", "found"))
    predicted = counted["lesions_predicted"]
    empty = np.where(true == 0, np.nan, 0.0)
    result = scores.assign(
        lesion_recall=_ratio(found, true, np.nan),
        lesion_precision=_ratio(found, predicted, empty),
        lesion_f1=_ratio(2 * found, true + predicted, np.nan),
    )
    for band in BANDS:
        result[f"lesion_recall_{band}"] = _ratio(
            counted[f"lesions_found_{band}"], counted[f"lesions_true_{band}"], np.nan
        )
    return result


def _ratio(
    part: NDArray[np.float64], whole: NDArray[np.float64], otherwise: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.where(np.isnan(whole), np.nan, otherwise))
