"""The one reader of dataset.json, the description of a dataset that its user writes by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.nnunet.json_files import read_json
from nnunet_ext.utils.messages import some_of

_EXAMPLES = {
    "labels": '{"background": 0, "liver": 1}',
    "file_ending": '".nii.gz"',
    "channel_names": '{"0": "CT"}',
    "numTraining": "20",
}


def read_dataset_json(path: str | Path, *more: str) -> dict[str, Any]:
    """Returns the content of a dataset.json.

    Args:
        path: The file.
        *more: Keys that are needed besides `labels` and `file_ending`.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged, lacks a key, or a key has a value that nnU-Net cannot use; the message names the
            file, the key and what is expected.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must be a JSON object with the keys `labels`, `file_ending`, .., not {_kind(content)}"
        )
    require(path, content, "labels", "file_ending", *more)
    _check_labels(path, content)
    ending = content["file_ending"]
    if not isinstance(ending, str) or not ending.startswith("."):
        raise _wrong(path, "file_ending", ending)
    if "channel_names" in content:
        _check_channels(path, content["channel_names"])
    number = content.get("numTraining", 0)
    if type(number) is not int:
        raise _wrong(path, "numTraining", number)
    return content


def label_values(content: Mapping[str, Any]) -> set[int]:
    """All values of the labels of a dataset.json: background, those of regions, and the ignore label."""
    return {value for entry in content["labels"].values() for value in _values(entry)}


def require(path: str | Path, content: Mapping[str, Any], *keys: str) -> None:
    """Raises ValueError, with the file, the key and an example, for a key that a dataset.json lacks."""
    for key in keys:
        if key not in content:
            old = key == "channel_names" and "modality" in content
            hint = " (it has `modality`, the key's name in version 1)" if old else ""
            raise ValueError(f"{path} has no `{key}`{hint}; expected, for example, {_EXAMPLES[key]}")


def check_consecutive(path: str | Path, content: Mapping[str, Any]) -> None:
    """Checks the further demands of nnU-Net's training on the labels: something to segment, and no gaps.

    Raises:
        ValueError: for background only, or values that are not 0, 1, 2, ..
    """
    values = sorted(label_values(content))
    if not set(values) - {0, content["labels"].get("ignore")}:
        raise ValueError(f"{path}: `labels` names nothing besides background: there is nothing to segment")
    if values != list(range(len(values))):
        raise ValueError(
            f"{path}: `labels` has the values {', '.join(map(str, values))}; nnU-Net needs consecutive ones, "
            f"{', '.join(map(str, range(len(values))))}: renumber them here and in the label files"
        )


def _check_labels(path: Path, content: Mapping[str, Any]) -> None:
    labels = content["labels"]
    if not isinstance(labels, Mapping):
        raise _wrong(path, "labels", labels)
    if labels and all(str(key).isdigit() and isinstance(value, str) for key, value in labels.items()):
        turned = ", ".join(f'"{name}": {value}' for value, name in labels.items())
        raise ValueError(f"{path}: `labels` has the form of nnU-Net version 1; version 2 expects {{{turned}}}")
    for name, entry in labels.items():
        if not _values(entry) or not all(type(value) is int and value >= 0 for value in _values(entry)):
            raise ValueError(
                f"{path}: `labels` has {entry!r} for {name!r}; expected a whole number without quotes, or a list of "
                "them for a region"
            )
    if labels.get("background") != 0:
        raise ValueError(f'{path}: `labels` must have "background": 0')
    _check_ignore(path, labels)
    _check_regions(path, content)


def _check_ignore(path: Path, labels: Mapping[str, Any]) -> None:
    ignore = labels.get("ignore")
    highest = max(value for name, entry in labels.items() if name != "ignore" for value in _values(entry))
    if ignore is not None and ignore != highest + 1:
        raise ValueError(f"{path}: the ignore label must be the highest value, {highest + 1}, not {ignore}")


def _check_regions(path: Path, content: Mapping[str, Any]) -> None:
    labels, order = content["labels"], content.get("regions_class_order")
    regions = [name for name, entry in labels.items() if name != "ignore" and set(_values(entry)) != {0}]
    if not any(isinstance(labels[name], list) and len(labels[name]) > 1 for name in regions):
        return
    if not isinstance(order, list) or len(order) != len(regions) or not all(type(value) is int for value in order):
        raise ValueError(
            f"{path}: labels that are regions need `regions_class_order`, a list with the value to write for each of "
            f"{some_of(regions)}; found {'none' if order is None else order}"
        )


def _check_channels(path: Path, channels: Any) -> None:
    if not isinstance(channels, Mapping) or not channels:
        raise _wrong(path, "channel_names", channels)
    if set(channels) != {str(number) for number in range(len(channels))}:
        raise ValueError(
            f"{path}: `channel_names` has the keys {', '.join(map(str, channels))}; expected the channels' numbers "
            f"{', '.join(str(number) for number in range(len(channels)))}"
        )


def _values(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def _wrong(path: Path, key: str, value: Any) -> ValueError:
    return ValueError(f"{path}: `{key}` is {value!r}; expected, for example, {_EXAMPLES[key]}")


def _kind(content: Any) -> str:
    return {"list": "a list", "str": "a text", "NoneType": "null"}.get(type(content).__name__, "a number")
