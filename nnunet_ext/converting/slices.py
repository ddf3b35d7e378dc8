"""Volumes from one file per slice: DICOM series, and label maps as PNG files beside them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_ext.nnunet.geometry import LIMIT, ROUNDING
from nnunet_ext.utils.locales import kept_locale
from nnunet_ext.utils.messages import some_of


@kept_locale()
def read_series(files: Sequence[Path]) -> tuple[sitk.Image, list[Path]]:
    """Reads a DICOM series, whose slices are ordered by their position in space.

    Names, instance numbers and unique identifiers play no role: all files are taken to be of one series.

    Args:
        files: One file per slice, in any order.

    Returns:
        The volume, and the files in the order of its slices.

    Raises:
        ValueError: if a file cannot be read, or the slices are not parallel, aligned and equally spaced within half a
            voxel.
    """
    headers = {file: _header(file) for file in files}
    first = headers[files[0]]
    for file, header in headers.items():
        size = first.GetSize()[:2] == header.GetSize()[:2]
        if not size or not _close(first.GetDirection(), header.GetDirection()):
            raise ValueError(f"{file} differs from {files[0].name} in size or orientation: it is of another series")
        if not _close(first.GetSpacing()[:2], header.GetSpacing()[:2]):
            raise ValueError(f"{file} differs from {files[0].name} in the size of its pixels: it is of another series")
    normal = np.reshape(first.GetDirection(), (3, 3))[:, 2]
    ordered = sorted(files, key=lambda file: float(np.dot(headers[file].GetOrigin(), normal)))
    origins = np.array([headers[file].GetOrigin() for file in ordered])
    step = _step(origins, normal, first.GetSpacing(), ordered)
    volume = sitk.ReadImage([str(file) for file in ordered])
    volume.SetOrigin(origins[0].tolist())
    volume.SetDirection(first.GetDirection())
    volume.SetSpacing((*first.GetSpacing()[:2], step))
    return volume, ordered


@kept_locale()
def read_label_slices(files: Sequence[Path], images: Sequence[Path]) -> NDArray[np.int32]:
    """Reads a label map (D, H, W) from pictures that have the names of the image's slices.

    Args:
        files: One picture per slice, in any order.
        images: The image's files in the order of its slices.

    Raises:
        ValueError: for a slice without a picture, a picture without a slice, or a picture that is not grey.
    """
    by_name, wanted = {file.stem: file for file in files}, {image.stem for image in images}
    for missing, noun in ((wanted - by_name.keys(), "slices without"), (by_name.keys() - wanted, "no slice for")):
        if missing:
            folder = files[0].parent
            raise ValueError(f"{folder}: {noun} a label picture of the same name: {some_of(sorted(missing))}")
    slices = [_picture(by_name[image.stem]) for image in images]
    if len({picture.shape for picture in slices}) > 1:
        raise ValueError(f"{files[0].parent}: the label pictures differ in size")
    return np.stack(slices)


def _header(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{file} cannot be read as DICOM; download it again") from error
    return reader


def _step(
    origins: NDArray[np.float64], normal: NDArray[np.float64], spacing: Sequence[float], files: Sequence[Path]
) -> float:
    """Distance of the slices in mm, from their positions (D, 3)."""
    if len(origins) == 1:
        raise ValueError(f"{files[0]} is the only slice of its series; download the series again")
    step = float((origins[-1] - origins[0]) @ normal) / (len(origins) - 1)
    expected = origins[0] + np.arange(len(origins))[:, None] * step * normal
    deviations = np.linalg.norm(origins - expected, axis=1)
    limit = LIMIT * min(step, *spacing[:2])
    if step < ROUNDING or deviations.max() > limit:
        worst = files[int(deviations.argmax())]
        raise ValueError(
            f"{worst.parent}: the slices are not equally spaced along one line: {worst.name} lies "
            f"{deviations.max():.3g} mm from its place; a slice is missing, stored twice, or of another series"
        )
    return step


def _picture(file: Path) -> NDArray[np.int32]:
    try:
        picture = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    except RuntimeError as error:
        raise ValueError(f"{file} cannot be read; download it again") from error
    if picture.ndim != 2:
        raise ValueError(f"{file} is not a grey picture, one value per pixel")
    return picture.astype(np.int32)


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    return np.allclose(first, second, rtol=1e-3, atol=1e-4)
