"""Chooses the preprocessed data of a configuration: an existing plan's where the preprocessing is the same."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.nnunet.json_files import read_json

_OF_CONFIGURATION = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
_OF_PLANS = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")


def shared_identifiers(plans: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Returns the data identifier of every configuration of `plans` that has preprocessed data of its own.

    It is that of another plan in `folder` with the same preprocessing, nnU-Net's default plan first; otherwise the
    configuration's own, with a number appended where another plan uses that name for other data.

    Args:
        plans: nnU-Net's plans, not yet in the folder or in an older version.
        folder: The dataset's folder of preprocessed data, which holds the plans.
    """
    others = [found for found in _plans_in(folder) if found["plans_name"] != plans["plans_name"]]
    identifiers = {}
    for name, configuration in plans["configurations"].items():
        if "data_identifier" not in configuration:  # its data are inherited
            continue
        wanted = preprocessing(plans, configuration)
        used = {(c["data_identifier"], preprocessing(p, c)) for p, c in _preprocessed(others)}
        same = [identifier for p, c in _preprocessed(others) for identifier in _matching(p, c, wanted)]
        own = f"{plans['plans_name']}_{name}"
        numbered = (own if i == 1 else f"{own}_{i}" for i in range(1, len(used) + 2))
        taken = {identifier for identifier, _ in used}
        identifiers[name] = same[0] if same else next(i for i in numbered if i not in taken)
    return identifiers


def is_preprocessed(plans: Mapping[str, Any], name: str, folder: Path, cases: int) -> bool:
    """Whether a configuration's data exist, made under a plan in `folder` with the same preprocessing.

    Args:
        plans: nnU-Net's plans.
        name: Name of the configuration.
        folder: The dataset's folder of preprocessed data.
        cases: Number of training cases of the dataset.
    """
    configuration = plans["configurations"][name]
    identifier, wanted = configuration["data_identifier"], preprocessing(plans, configuration)
    known = [preprocessing(p, c) for p, c in _preprocessed(_plans_in(folder)) if c["data_identifier"] == identifier]
    return all(k == wanted for k in known) and bool(known) and len(list((folder / identifier).glob("*.pkl"))) == cases


def preprocessing(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """Everything that nnU-Net's preprocessing of a configuration depends on, as comparable text."""
    parts = [configuration.get(key) for key in _OF_CONFIGURATION] + [plans.get(key) for key in _OF_PLANS]
    return json.dumps(parts, sort_keys=True)


def _matching(plans: Mapping[str, Any], configuration: Mapping[str, Any], wanted: str) -> list[str]:
    return [configuration["data_identifier"]] if preprocessing(plans, configuration) == wanted else []


def _plans_in(folder: Path) -> list[dict[str, Any]]:
    """Plans of a folder, nnU-Net's default first; other files and plans in nnU-Net's older formats are left out."""
    found = []
    for file in sorted(folder.glob("*.json"), key=lambda f: (f.stem != "nnUNetPlans", f.name)):
        content = read_json(file)
        if isinstance(content, dict) and {"plans_name", "configurations"} <= content.keys():
            found.append(content)
    return found


def _preprocessed(found: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of plans and each of their configurations that has preprocessed data of its own."""
    for plans in found:
        for configuration in plans["configurations"].values():
            if "data_identifier" in configuration:
                yield plans, configuration
