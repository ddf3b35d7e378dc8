"""Splits that keep groups of cases, for example the scans of a patient, on one side of every fold."""

from collections.abc import Mapping, Sequence
from typing import Any


def split_by_group(cases: Sequence[str], groups: Mapping[str, str], folds: int) -> list[dict[str, list[str]]]:
    """A cross-validation's split in nnU-Net's form, by scikit-learn's GroupKFold.

    Args:
        cases: Identifiers of the cases.
        groups: Group of each case.
        folds: Number of folds, at most the number of groups.
    """
    from sklearn.model_selection import GroupKFold

    ordered = sorted(cases)
    pairs = GroupKFold(folds).split(ordered, groups=[groups[case] for case in ordered])
    return [
        {"train": [ordered[index] for index in train], "val": [ordered[index] for index in validation]}
        for train, validation in pairs
    ]


def divided_groups(splits: Sequence[Mapping[str, Any]], groups: Mapping[str, str]) -> list[tuple[int, str]]:
    """Pairs of a fold and a group that the fold divides between training and validation."""
    found = []
    for fold, split in enumerate(splits):
        train, validation = ({groups[case] for case in split[side] if case in groups} for side in ("train", "val"))
        found += [(fold, group) for group in sorted(train & validation)]
    return found
