"""Scans by nnU-Net's file names: CASE_0000.nii.gz, CASE_0001.nii.gz, ... are the channels of CASE."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.nnunet.geometry import LIMIT, ROUNDING, geometry_differences, grid_of, placement
from nnunet_ext.utils.files import check_whole
from nnunet_ext.utils.messages import some_of

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Scan:
    """Files of a case.

    Attributes:
        case: Identifier.
        ending: Ending of the files, with the dot.
        files: One file per channel, in order; a file may hold several channels (colours).
    """

    case: str
    ending: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A scan that could not be processed.

    Attributes:
        case: Identifier.
        reason: Reason, in one line.
    """

    case: str
    reason: str

    @classmethod
    def of(cls, scan: Scan, error: Exception) -> "Failure":
        """A failure with the error's message, or its type if it has none."""
        return cls(scan.case, " ".join(str(error).split()) or type(error).__name__)


def scan_of(path: str | Path, endings: Sequence[str]) -> Scan:
    """The scan that a file belongs to, with the further channels beside it if its name ends in _0000.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: for a file of another kind, or channels that are not numbered 0000, 0001, ...
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    stem, ending = _split(path, endings)
    match = _CHANNEL.fullmatch(stem)
    if match is None:
        return Scan(stem, ending, (str(path),))
    case, first = match.groups()
    siblings = _channels(path.parent, [ending])[case, ending]
    if first != "0000" and "0000" in siblings:
        raise ValueError(f"{path} is channel {first} of {case}; give the first, {case}_0000{ending}, and all are read")
    _check_numbers(case, ending, siblings)
    return Scan(case, ending, tuple(str(siblings[number]) for number in sorted(siblings)))


def scans_in(folder: str | Path, endings: Sequence[str]) -> tuple[list[Scan], list[Failure]]:
    """The scans in a folder, sorted by case. Files whose names begin with a dot are ignored.

    Returns:
        Scans whose channels are exactly 0000, 0001, ..; and failures: cases with other channel numbers, cases that
        exist in several formats, and files without a channel number, under their names.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no file has one of the endings.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    channels, failures = _channels(folder, endings), []
    unnumbered = [path for path in files_with(folder, endings) if not _CHANNEL.fullmatch(_split(path, endings)[0])]
    if not channels and not unnumbered:
        raise ValueError(f"{folder} has no scan: no file that ends with {', '.join(endings)}")
    for path in unnumbered:
        stem, ending = _split(path, endings)
        beside = f" and stands beside the scan {stem}_0000" if (stem, ending) in channels else ""
        failures.append(
            Failure(path.name, f"has no channel number{beside}; a scan's file is named {stem}_0000{ending}")
        )
    scans = []
    for (case, ending), files in sorted(channels.items()):
        formats = sorted(other for name, other in channels if name == case)
        try:
            _check_numbers(case, ending, files)
            if len(formats) > 1:
                raise ValueError(f"exists in several formats, {', '.join(formats)}: remove all but one")
        except ValueError as error:
            failures.append(Failure(case, str(error)))
        else:
            scans.append(Scan(case, ending, tuple(str(files[number]) for number in sorted(files))))
    return scans, list(dict.fromkeys(failures))


def files_with(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Files with one of some endings, sorted; hidden ones, such as macOS's `._case.nii.gz`, are left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower().endswith(tuple(endings)) and path.is_file()
    )


def label_files(folder: Path, ending: str) -> dict[str, Path]:
    """Label maps, or predictions, in a folder by case."""
    return {path.name[: -len(ending)]: path for path in files_with(folder, [ending]) if path.name.endswith(ending)}


def check_other_folder(target: str | Path, source: str | Path) -> None:
    """Raises ValueError if results would be written into the folder of the scans."""
    if Path(target).resolve() == Path(source).resolve():
        raise ValueError(
            f"the output folder {target} is the input folder: masks among scans would be taken for scans; give another"
        )


def read_scan(reader: Any, files: Sequence[str]) -> tuple[np.ndarray, dict]:
    """Image (M, D, H, W) and properties, from one of nnU-Net's readers.

    Raises:
        ValueError: for a damaged file, and for NaN or infinite voxels, which a network spreads over the whole output.
            SimpleITK reads those of NIfTI files as 0, as in training.
    """
    for file in files:
        check_whole(file)
    image, properties = reader.read_images(files)
    # One sum is cheaper than a mask, and finite unless a value is not.
    if not np.isfinite(image.sum(dtype=np.float64)):
        wrong = int((~np.isfinite(image)).sum())
        raise ValueError(f"{', '.join(Path(file).name for file in files)}: {wrong} NaN or infinite voxels")
    return image, properties


def check_same_grid(
    names: tuple[str, str],
    shapes: tuple[Sequence[int], Sequence[int]],
    properties: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> str:
    """Checks that two images that nnU-Net stacks have the same voxels, up to half a voxel.

    Args:
        names: Files, for messages.
        shapes: (D, H, W) of each.
        properties: Properties of each, as nnU-Net's readers return them.

    Returns:
        A note if they are apart by more than the rounding of headers, else an empty text.

    Raises:
        ValueError: if they differ by more than half a voxel, or are stored in different orders of axes.
    """
    first, second = (grid_of(stored, shape) for stored, shape in zip(properties, shapes, strict=True))
    found = placement(second, first)
    if found is None or not found.same_order or found.deviation > LIMIT:
        different = geometry_differences(*properties)
        if first.shape != second.shape:
            different.insert(0, f"size {first.shape} and {second.shape}")
        raise ValueError(f"{names[0]} and {names[1]} differ in {'; '.join(different) or 'geometry'}")
    return f"{names[1]} lies {found.deviation:.2g} voxels off {names[0]}" if found.deviation > ROUNDING else ""


def _channels(folder: Path, endings: Sequence[str]) -> dict[tuple[str, str], dict[str, Path]]:
    """Numbered files by case and ending, then by number."""
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for path in files_with(folder, endings):
        stem, ending = _split(path, endings)
        if match := _CHANNEL.fullmatch(stem):
            found.setdefault((match[1], ending), {})[match[2]] = path
    return found


def _check_numbers(case: str, ending: str, files: Mapping[str, Path]) -> None:
    numbers = sorted(files)
    if numbers == [f"{number:04}" for number in range(len(numbers))]:
        return
    hint = ""
    if "0000" not in numbers:
        renamed = [f"{case}_{number}_0000{ending}" for number in numbers]
        hint = f"; scans whose names end in a number, a year for instance, are named {some_of(renamed, 2)}"
    raise ValueError(f"has the channels {some_of(numbers)}; channels are numbered 0000, 0001, .. without gaps{hint}")


def _split(path: Path, endings: Sequence[str]) -> tuple[str, str]:
    for ending in sorted(endings, key=len, reverse=True):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)], path.name[-len(ending) :]
    raise ValueError(f"{path} has an ending that the model's reader does not read; it reads {', '.join(endings)}")
