"""Label maps: read with their values checked, and brought to the grid of what they are compared with."""

from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nnunet_ext.nnunet.geometry import LIMIT, ROUNDING, Grid, geometry_differences, grid_of, placement
from nnunet_ext.utils.files import check_whole
from nnunet_ext.utils.messages import some_of


@dataclass(frozen=True)
class LabelMap:
    """A label map as it is stored.

    Attributes:
        file: Its file.
        values: (D, H, W), whole numbers.
        properties: Geometry, as nnU-Net's reader returns it.
        note: Remark on the geometry for the user; empty if there is none.
    """

    file: Path
    values: NDArray[np.int32]
    properties: Mapping[str, Any]
    note: str = ""

    @property
    def grid(self) -> Grid:
        return grid_of(self.properties, self.values.shape)

    @property
    def present(self) -> list[int]:
        """Values that occur, in ascending order."""
        return sorted(int(value) for value in pd.unique(self.values.ravel()))


def read_label_map(
    reader: Any, file: str | Path, expected: Collection[int] | None = None, source: str = "the labels of dataset.json"
) -> LabelMap:
    """Reads a label map.

    Args:
        reader: One of nnU-Net's readers.
        file: File of the map. Floating-point files with whole values are fine.
        expected: Values that the map may have; None: any whole numbers.
        source: Origin of the expected values, for the message.

    Raises:
        ValueError: if the file cannot be read, has several channels (a colour or palette image), or has other values
            than those expected; the message names the file, the values found and those expected.
    """
    file = Path(file)
    try:
        check_whole(file)
        with redirect_stdout(StringIO()):  # readers print what is in the error too
            array, properties = reader.read_seg(str(file))
    # The type of the error depends on the reader.
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
    several = len(array) if len(properties["spacing"]) == array.ndim - 1 else array.shape[-1]
    if several != 1 or array.ndim != 4 or len(properties["spacing"]) != 3:
        raise ValueError(
            f"{file} has {several} channels, a label map has one: save it with one whole number per voxel, the label's "
            "value, not as a colour or palette image"
        )
    values, wrong = _whole(array[0])
    if wrong:
        raise ValueError(f"{file} has the values {some_of(wrong)}; expected {_expected(expected, source)}")
    found = LabelMap(file, values, properties)
    unknown = [] if expected is None else [str(value) for value in found.present if value not in expected]
    if unknown:
        noun = "value" if len(unknown) == 1 else "values"
        raise ValueError(f"{file} has the {noun} {some_of(unknown)}; expected {_expected(expected, source)}")
    return found


def align(moving: LabelMap, name: str | Path, properties: Mapping[str, Any], shape: tuple[int, ...]) -> LabelMap:
    """Brings a label map to the grid of an image or of another map by transposing and flipping its axes.

    Nothing is resampled: the two must occupy the same space, up to half a voxel.

    Args:
        moving: The map.
        name: File of the image or map that has the grid, for messages.
        properties: Geometry of the grid, as nnU-Net's reader returns it.
        shape: (D, H, W) of the grid.

    Returns:
        The map on the grid; its note says if it lies off the grid by more than the rounding of headers.

    Raises:
        ValueError: if the two do not occupy the same space.
    """
    found = placement(moving.grid, grid_of(properties, shape))
    if found is None or found.deviation > LIMIT:
        differences = geometry_differences(properties, moving.properties)
        if moving.values.shape != tuple(shape):
            differences.insert(0, f"size {tuple(shape)} and {moving.values.shape}")
        raise ValueError(
            f"{name} and {moving.file} differ in {'; '.join(differences) or 'geometry'}: they do not occupy the same "
            "space; resample one to the other, or give both the header of the scan if only a header is wrong"
        )
    note = f"{moving.file} lies {found.deviation:.2g} voxels off {name}" if found.deviation > ROUNDING else ""
    return LabelMap(moving.file, np.ascontiguousarray(found.apply(moving.values)), properties, note)


def read_pair(
    reader: Any, truth: str | Path, prediction: str | Path, expected: Collection[int] | None = None
) -> tuple[LabelMap, LabelMap]:
    """Reads a true and a predicted label map; the prediction is brought to the grid of the truth.

    Raises:
        ValueError: as `read_label_map` and `align`.
    """
    true = read_label_map(reader, truth, expected)
    return true, align(read_label_map(reader, prediction, expected), truth, true.properties, true.values.shape)


def _whole(array: NDArray[Any]) -> tuple[NDArray[np.int32], list[str]]:
    """The values as whole numbers, and those that are none, as texts."""
    with np.errstate(invalid="ignore"):
        values = array.astype(np.int32)
    others = array[values != array]
    if not others.size:
        return values, []
    return values, [np.format_float_positional(value, trim="-") for value in np.sort(pd.unique(others))]


def _expected(expected: Collection[int] | None, source: str) -> str:
    return "whole numbers" if expected is None else f"{', '.join(map(str, sorted(expected)))}: {source}"
