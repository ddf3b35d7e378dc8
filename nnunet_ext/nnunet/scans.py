"""Files of scans by nnU-Net's names: CASE_0000.nii.gz, CASE_0001.nii.gz, .. are the channels of CASE."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.utils.files import check_whole

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Scan:
    """A case's files.

    Attributes:
        case: Identifier.
        ending: Of the files, with the dot.
        files: One a channel, in their order; a file may hold several channels (colours).
    """

    case: str
    ending: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A scan that could not be done.

    Attributes:
        case: Its identifier.
        reason: In one line.
    """

    case: str
    reason: str

    @classmethod
    def of(cls, scan: Scan, error: Exception) -> "Failure":
        """With what an error says, or its type where it says nothing."""
        return cls(scan.case, " ".join(str(error).split()) or type(error).__name__)


def scan_of(path: str | Path, endings: Sequence[str]) -> Scan:
    """The scan that a file belongs to: with further channels beside it if its name ends with _0000.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: for a file of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    stem, ending = _split(path, endings)
    match = _CHANNEL.fullmatch(stem)
    if match is None:
        return Scan(stem, ending, (str(path),))
    case, first = match.groups()
    if first != "0000":
        raise ValueError(f"{path} is channel {first} of {case}; give the first, {case}_0000{ending}, and all are read")
    siblings = sorted(path.parent.glob(f"{escape(case)}_[0-9][0-9][0-9][0-9]{ending}"))
    return Scan(case, ending, tuple(map(str, siblings)))


def scans_in(folder: str | Path, endings: Sequence[str]) -> list[Scan]:
    """All scans in a folder, sorted by case.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it has no file with one of the endings.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    scans: dict[tuple[str, str], list[str]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name.lower().endswith(tuple(endings)):
            stem, ending = _split(path, endings)
            match = _CHANNEL.fullmatch(stem)
            scans.setdefault((match.group(1) if match else stem, ending), []).append(str(path))
    if not scans:
        raise ValueError(f"{folder} has no scan: no file that ends with {', '.join(endings)}")
    return [Scan(case, ending, tuple(files)) for (case, ending), files in sorted(scans.items())]


def read_scan(reader: Any, files: Sequence[str]) -> tuple[np.ndarray, dict]:
    """Image (M, D, H, W) and properties by one of nnU-Net's readers.

    Raises:
        ValueError: for a damaged file, and for NaN or infinite voxels, of which a network makes NaN everywhere.
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


def geometry_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What differs in the properties that nnU-Net's readers give of two scans: spacing, origin, direction, affine."""
    found = []
    for key in sorted(first.keys() & second.keys()):
        a, b = first[key], second[key]
        if isinstance(a, Mapping):
            found += geometry_differences(a, b)
        elif np.shape(a) != np.shape(b) or not np.allclose(a, b, rtol=1e-4, atol=1e-3):
            found.append(f"{key} {np.round(a, 4).tolist()} and {np.round(b, 4).tolist()}")
    return found


def _split(path: Path, endings: Sequence[str]) -> tuple[str, str]:
    for ending in sorted(endings, key=len, reverse=True):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)], path.name[-len(ending) :]
    raise ValueError(f"{path} is of a kind that the model's reader does not read; it reads {', '.join(endings)}")
