"""Scores of labels that a case does not have. The truth alone decides which cases count, never a prediction."""

from typing import Literal

import numpy as np
import pandas as pd

from nnunet_ext.compare.lesion_metrics import ALL_METRICS, LESION_METRICS, add_lesion_metrics

EmptyRule = Literal["score", "rate"]
EMPTY_RULES: tuple[EmptyRule, ...] = ("score", "rate")


def apply_rule(scores: pd.DataFrame, rule: EmptyRule) -> pd.DataFrame:
    """Scores with the cases whose truth lacks a label treated by the rule, and with the metrics of counted lesions.

    score: an empty prediction has the best value of every metric (Dice and NSD 1, distances 0), any other keeps its
    values (Dice and NSD 0, distances the image's diagonal): the rule of the BraTS challenges.
    rate: all values of these cases are NaN, whatever was predicted; they count in the false-positive rate alone.

    Args:
        scores: As `measure` returns them.
        rule: score or rate.
    """
    result = add_lesion_metrics(scores.copy())
    absent = (scores["truth_voxels"] == 0).to_numpy()
    correct = absent & (scores["predicted_voxels"] == 0).to_numpy()
    for key, metric in ALL_METRICS.items():
        if key not in result:
            continue
        values = result[key].to_numpy(dtype=float, copy=True)
        scored = scores["lesions_predicted"].notna().to_numpy() if key in LESION_METRICS else True
        values[correct & scored] = metric.best
        if rule == "rate":
            values[absent] = np.nan
        result[key] = values
    return result


def nnunet_mean(scores: pd.DataFrame, name: str) -> float:
    """nnU-Net's `foreground_mean` Dice of a method: the mean of the labels' means over cases.

    A case in which neither truth nor prediction has a label is left out of the label's mean; repeats are averaged.

    Args:
        scores: As `measure` returns them.
        name: The method.
    """
    own = scores[scores["entrant"] == name]
    return float(own.groupby(["repeat", "label"])["dice"].mean().groupby("repeat").mean().mean())
