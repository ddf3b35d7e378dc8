"""Which preprocessed data a configuration uses: those of an existing plan where preprocessing is the same."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
    """Data identifier for every configuration of `plans` that is preprocessed itself.

    That of another plan in `folder` whose preprocessing is the same, nnU-Net's default plan first; else the
    configuration's own, with a number where a plan has that name for other data.

    Args:
        plans: nnU-Net's plans, not yet in the folder or there in an older form.
        folder: The dataset's folder of preprocessed data, where plans are.
    """
    others = [found for found in _plans_in(folder) if found["plans_name"] != plans["plans_name"]]
    identifiers = {}
    for name, configuration in plans["configurations"].items():
        if "data_identifier" not in configuration:  # it inherits its data
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
    """Whether the data of a configuration are there, by a plan in `folder` that preprocesses as this one.

    Args:
        plans: nnU-Net's plans.
        name: Configuration.
        folder: The dataset's folder of preprocessed data.
        cases: Training cases of the dataset.
    """
    configuration = plans["configurations"][name]
    identifier, wanted = configuration["data_identifier"], preprocessing(plans, configuration)
    known = [preprocessing(p, c) for p, c in _preprocessed(_plans_in(folder)) if c["data_identifier"] == identifier]
    return all(k == wanted for k in known) and bool(known) and len(list((folder / identifier).glob("*.pkl"))) == cases


def preprocessing(plans: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    """All that nnU-Net's preprocessing of a configuration depends on, as comparable text."""
    parts = [configuration.get(key) for key in _OF_CONFIGURATION] + [plans.get(key) for key in _OF_PLANS]
    return json.dumps(parts, sort_keys=True)


def _matching(plans: Mapping[str, Any], configuration: Mapping[str, Any], wanted: str) -> list[str]:
    return [configuration["data_identifier"]] if preprocessing(plans, configuration) == wanted else []


def _plans_in(folder: Path) -> list[dict[str, Any]]:
    """Plans of a folder, nnU-Net's default one first; other files, and plans of nnU-Net's older forms, are left out."""
    found = []
    for file in sorted(folder.glob("*.json"), key=lambda f: (f.stem != "nnUNetPlans", f.name)):
        content = json.loads(file.read_text())
        if isinstance(content, dict) and {"plans_name", "configurations"} <= content.keys():
            found.append(content)
    return found


def _preprocessed(found: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Plans with each of their configurations that are preprocessed themselves."""
    for plans in found:
        for configuration in plans["configurations"].values():
            if "data_identifier" in configuration:
                yield plans, configuration
