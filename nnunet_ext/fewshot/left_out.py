"""Slices that are left out of training because they show classes on which the network is tested: setting 2.

Source: Ouyang et al., "Self-supervision with superpixels: training few-shot medical image segmentation without
annotation", ECCV 2020: training without labels still sees a class unless no training slice shows it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEFT_OUT = "left_out_classes"
"""Key of the plans with the names of the classes; the trainings of such a plan have a folder of their own."""


def segmentable(labels: Mapping[str, Any]) -> list[str]:
    """Names of the classes of a dataset.json: all labels and regions but background and the ignore label."""
    return [name for name, value in labels.items() if name != "ignore" and value != 0]


def class_values(labels: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Values of classes in label maps, by name.

    Args:
        labels: `labels` of dataset.json.
        names: Names of classes, or regions.

    Raises:
        ValueError: for a name that is unknown, or is background or the ignore label.
    """
    known = segmentable(labels)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown class {unknown[0]!r}; known: {', '.join(known)}")
    values = {name: labels[name] if isinstance(labels[name], list | tuple) else [labels[name]] for name in names}
    return {name: tuple(int(value) for value in of_class) for name, of_class in values.items()}


def slices_left_out(
    dataset: Any, cases: Sequence[str], values: Sequence[int], ignore: int | None = None
) -> dict[str, NDArray[np.bool_]]:
    """Slices of preprocessed cases that show one of several labels, or may because they have unlabelled voxels.

    Args:
        dataset: nnU-Net's dataset of preprocessed cases.
        cases: Identifiers of the cases.
        values: Values of the labels.
        ignore: nnU-Net's ignore label; None: all voxels are labelled.

    Shape:
        (D,) for each case
    """
    hidden = [*values, *([] if ignore is None else [ignore])]
    found = {}
    for case in cases:
        labels = np.asarray(dataset.load_case(case)[1])[0]
        found[case] = np.asarray(np.isin(labels.reshape(len(labels), -1), hidden).any(axis=1))
    return found
