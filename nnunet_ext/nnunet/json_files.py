"""JSON files that nnU-Net or its users write. nnU-Net writes them in place, so that a kill can leave half of one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is cut off or not valid JSON ({error}): correct it, or run the command that wrote it again"
        ) from error


def read_json_if_whole(path: Path) -> Any:
    """Returns the content of a JSON file, or None if the file is missing or incomplete."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def read_plans(path: Path) -> dict[str, Any]:
    """Returns the content of a plans file.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or not a plans file of nnU-Net v2.
    """
    return _with_objects(path, {"configurations": Mapping, "plans_name": str}, "nnU-Net's plans")


def read_summary(path: Path) -> dict[str, Any]:
    """Returns the content of a summary.json, in which nnU-Net keeps the evaluation of predictions.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or something else.
    """
    content = _with_objects(path, {"metric_per_case": list}, "nnU-Net's evaluation")
    for case in content["metric_per_case"]:
        if not isinstance(case, Mapping) or not {"prediction_file", "metrics"} <= case.keys():
            raise ValueError(f"{path}: each item of `metric_per_case` must have `prediction_file` and `metrics`")
    return content


def read_splits(path: Path) -> list[dict[str, list[str]]]:
    """Returns the content of splits_final.json, the training and validation cases of each fold.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or something else.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(_is_split(split) for split in content):
        raise ValueError(
            f'{path} must be a list with one {{"train": [cases], "val": [cases]}} per fold, as nnU-Net writes it'
        )
    return content


def _is_split(split: Any) -> bool:
    return isinstance(split, Mapping) and all(isinstance(split.get(part), list) for part in ("train", "val"))


def _with_objects(path: Path, keys: Mapping[str, type], kind: str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object ({kind}), not a {type(content).__name__}")
    for key, wanted in keys.items():
        if not isinstance(content.get(key), wanted):
            raise ValueError(f"{path} is not {kind}: `{key}` is missing or of the wrong type")
    return content
