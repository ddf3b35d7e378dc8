"""The labels of a dataset as nnU-Net evaluates them: labels or regions, and the ignore label."""

from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from nnunet_ext.compare.metrics import Label


@dataclass(frozen=True)
class LabelSet:
    """The labels compared, and how their files are read.

    Attributes:
        labels: Value of each label, or values of each region, by its name; without background.
        ignore_label: Value of the ignore label; None if there is none.
        file_ending: Ending of the names of the segmentation maps.
        reader: Name of nnU-Net's class that reads them.
        channel: Name of the images' channel that is shown; empty: not known.
    """

    labels: Mapping[str, Label]
    ignore_label: int | None
    file_ending: str
    reader: str
    channel: str = ""

    @property
    def values(self) -> frozenset[int]:
        """Values that label maps may have, background and the ignore label included."""
        named = {value for label in self.labels.values() for value in _canonical(label)}
        return frozenset(named | {0} | ({self.ignore_label} if self.ignore_label is not None else set()))

    @property
    def in_pixels(self) -> bool:
        """Whether the images are natural ones, without a size in mm."""
        return self.reader == "NaturalImage2DIO"


def label_set(dataset: Mapping[str, Any], example: Path) -> LabelSet:
    """The labels that a dataset.json declares, by the rules of nnU-Net's LabelManager.

    Args:
        dataset: Content of the dataset.json.
        example: A segmentation map, to choose the reader.

    Raises:
        ValueError: if it declares no label besides background, or nnU-Net cannot read the map.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
    values: list[Any] = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    if not values:
        raise ValueError("dataset.json names no label besides background: there is nothing to compare")
    names = {_canonical(value): name for name, value in dataset["labels"].items() if name != "ignore"}
    try:
        # nnU-Net prints the tracebacks of readers that do not read the file.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            reader = determine_reader_writer_from_dataset_json(dict(dataset), str(example), verbose=False)
    except RuntimeError as error:
        raise ValueError(f"nnU-Net cannot read {example}: {error}") from error
    plain = [_canonical(value) if isinstance(value, tuple) else int(value) for value in values]
    return LabelSet(
        {names.get(_canonical(value), str(value)): value for value in plain},
        manager.ignore_label,
        dataset["file_ending"],
        reader.__name__,
        _channel(dataset, reader.__name__),
    )


def _channel(dataset: Mapping[str, Any], reader: str) -> str:
    """The name of the first channel; colour images are shown with all three."""
    names = list((dataset.get("channel_names") or dataset.get("modality") or {}).values())
    if reader == "NaturalImage2DIO" and len(names) > 1:
        return "colour image"
    return str(names[0]) if names else ""


def _canonical(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, list | tuple) else (int(value),)


def check_same_labels(expected: Mapping[str, Any], found: Mapping[str, Any], where: str, other: str) -> None:
    """Raises ValueError, naming the difference, if two dataset.json declare other labels."""
    for key in ("labels", "regions_class_order"):
        if expected.get(key) != found.get(key):
            raise ValueError(
                f"the labels differ: {where} has `{key}`={found.get(key)}, {other} has {expected.get(key)}; "
                "compare only what was trained and validated on the same labels"
            )
