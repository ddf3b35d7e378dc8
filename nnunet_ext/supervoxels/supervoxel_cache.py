"""Supervoxels kept in a file per case, beside the preprocessed data."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_ext.supervoxels.supervoxels import SupervoxelParameters, check_image, supervoxels
from nnunet_ext.utils.files import replacing

VERSION = 1
"""Version of the algorithm, raised when its labels change, so that older files are remade."""

SUFFIX = ".supervoxels"


def cached_supervoxels(
    image: ArrayLike,
    spacing: Sequence[float],
    folder: str | Path,
    case: str,
    parameters: SupervoxelParameters | None = None,
) -> NDArray[np.int32]:
    """`supervoxels`, read from FOLDER/CASE.supervoxels if that exists, else made and written there.

    The file (NumPy's compressed .npz format) holds the labels, the parameters, and a hash of image, spacing, parameters
    and `VERSION`. It is remade if the hash differs or the file cannot be read. It appears complete or not at all: a
    killed run leaves at most a file CASE.supervoxels.*.partial, which nothing reads.

    Args:
        image: Image, as in `supervoxels`.
        spacing: Spacing of the axes D, H and W, in mm.
        folder: Folder of the files; created if it is missing.
        case: The case's identifier.
        parameters: Settings; None: the defaults.

    Shape:
        image (D, H, W) or (M, D, H, W); result (D, H, W).

    Raises:
        ValueError: as `supervoxels`, and if `case` cannot be a file name.
        OSError: if the file cannot be written.
    """
    if case in ("", "..") or Path(case).name != case:
        raise ValueError(f"`case`={case!r} must be a file name, without folders")
    parameters = SupervoxelParameters() if parameters is None else parameters
    values = check_image(image, spacing)
    key = content_key(values, spacing, parameters)
    path = Path(folder) / (case + SUFFIX)
    labels = _read(path, key, values.shape[1:])
    if labels is None:
        labels = supervoxels(values, spacing, **asdict(parameters))
        _write(path, key, labels, parameters)
    return labels


def read_supervoxels(folder: str | Path, case: str) -> NDArray[np.int32]:
    """Labels (D, H, W) that `cached_supervoxels` has written, without a check of their origin.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the file is damaged.
    """
    path = Path(folder) / (case + SUFFIX)
    if not path.is_file():
        raise FileNotFoundError(f"no supervoxels of the case {case!r}: {path}")
    content = _load(path)
    if content is None:
        raise ValueError(f"{path} is damaged; delete it, and it will be remade")
    return content[1]


def content_key(image: NDArray[np.generic], spacing: Sequence[float], parameters: SupervoxelParameters) -> str:
    """SHA-256 of everything that the labels depend on, in hexadecimal digits."""
    header = {
        "version": VERSION,
        "dtype": image.dtype.str,
        "shape": image.shape,
        "spacing": [float(s) for s in spacing],
        "parameters": asdict(parameters),
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _read(path: Path, key: str, shape: tuple[int, ...]) -> NDArray[np.int32] | None:
    """The labels, or None if the file is missing, damaged, or made from other data."""
    content = _load(path)
    return content[1] if content is not None and content[0] == key and content[1].shape == shape else None


def _load(path: Path) -> tuple[str, NDArray[np.int32]] | None:
    """Key and labels of a file; None if it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file) as content:
            return str(content["key"]), content["labels"].astype(np.int32)
    # The type of NumPy's error depends on which bytes are wrong.
    except Exception:
        return None


def _write(path: Path, key: str, labels: NDArray[np.int32], parameters: SupervoxelParameters) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = labels.astype(np.uint16 if labels.max() < 2**16 else np.uint32)
    with replacing(path, shared=True) as file:  # several processes may make the same file
        np.savez_compressed(file, labels=small, key=key, parameters=json.dumps(asdict(parameters)))
