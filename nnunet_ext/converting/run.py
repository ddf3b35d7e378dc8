"""`nnunet_ext convert`: a downloaded data set as a raw dataset of nnU-Net."""

import gzip
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext import __version__
from nnunet_ext.converting.layout import Case
from nnunet_ext.converting.sets import PublicSet
from nnunet_ext.converting.slices import read_label_slices, read_series
from nnunet_ext.nnunet.label_maps import align, read_label_map
from nnunet_ext.nnunet.scans import Failure, read_scan
from nnunet_ext.utils.files import check_whole, check_writable
from nnunet_ext.utils.messages import some_of

_ENDING = ".nii.gz"


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        failures: Cases that could not be converted. If there are any, no dataset was written.
        notes: Remarks on geometry.
    """

    failures: list[Failure]
    notes: list[str]


def run(public: PublicSet, cases: Sequence[Case], target: Path) -> Conversion:
    """Converts the cases of a data set; the folder appears only when it is complete.

    Images keep their voxels and headers. Label maps get consecutive values and the exact geometry of their image; maps
    stored in another order of axes are reordered, nothing is resampled. Cases without labels go to `imagesTs`.

    Args:
        public: The data set.
        cases: Its cases, from `find_cases`.
        target: Folder DatasetXXX_NAME, after `check_target`.
    """
    check_writable(target.parent)
    failures, notes = [], []
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name
        for part in {"imagesTr", "labelsTr"} | {"imagesTs" for case in cases if not case.labels}:
            (folder / part).mkdir(parents=True, exist_ok=True)
        for case in tqdm(cases, "Converting", unit="case", disable=None):
            try:
                notes += _convert(public, case, folder)
            except (ValueError, RuntimeError) as error:  # RuntimeErrors are SimpleITK's
                failures.append(Failure(case.name, " ".join(str(error).split())))
        if not failures:
            _describe(public, cases, folder)
            folder.rename(target)
    return Conversion(failures, notes)


def renumbered(stored: NDArray[np.int32], values: Mapping[str, range], source: Path) -> NDArray[np.uint8]:
    """A label map with the values 1, 2, ... in place of the stored ones.

    Args:
        stored: Values as they are stored; 0 is background.
        values: Stored values of each label, in order.
        source: File or folder of the map, for messages.

    Raises:
        ValueError: for values of no label.
    """
    result = np.zeros(stored.shape, np.uint8)
    for number, kept in enumerate(values.values(), start=1):
        result[(stored >= kept.start) & (stored < kept.stop)] = number
    unknown = np.sort(pd.unique(stored[(result == 0) & (stored != 0)]))
    if unknown.size:
        expected = ", ".join(f"{_span(kept)} ({name})" for name, kept in values.items())
        raise ValueError(f"{source} has the values {some_of(list(map(str, unknown)))}; expected 0, {expected}")
    return result


def _convert(public: PublicSet, case: Case, folder: Path) -> list[str]:
    """Writes the files of a case and returns remarks on its geometry."""
    image_file = folder / ("imagesTr" if case.labels else "imagesTs") / f"{case.name}_0000{_ENDING}"
    order = _write_image(case.images, image_file)
    reader = SimpleITKIO()
    image, properties = read_scan(reader, [str(image_file)])
    if len(image) != 1 or len(properties["spacing"]) != 3:
        raise ValueError(f"{case.images[0]} has the shape {image.shape}; expected one channel with three dimensions")
    if not case.labels:
        return []
    source, note = case.labels[0], ""
    if order:
        source, stored = source.parent, read_label_slices(case.labels, order)
        if stored.shape != image.shape[1:]:
            raise ValueError(f"{source} has the size {stored.shape}, its image {image.shape[1:]}")
    else:
        found = align(read_label_map(reader, source), case.images[0], properties, image.shape[1:])
        stored, note = found.values, found.note
    labels = renumbered(stored, public.values, source)
    reader.write_seg(labels, str(folder / "labelsTr" / f"{case.name}{_ENDING}"), properties)
    return [note] if note else []


def _write_image(files: Sequence[Path], target: Path) -> list[Path]:
    """Writes the image; returns the files in the order of slices if each holds one slice, else an empty list."""
    file = files[0]
    if file.suffix.lower() == ".dcm":
        volume, order = read_series(files)
        sitk.WriteImage(volume, str(target))
        return order
    check_whole(file)
    if file.suffix == ".gz":
        shutil.copyfile(file, target)
    else:
        with file.open("rb") as plain, gzip.open(target, "wb") as packed:
            shutil.copyfileobj(plain, packed)
    return []


def _describe(public: PublicSet, cases: Sequence[Case], folder: Path) -> None:
    generate_dataset_json(
        str(folder),
        channel_names={"0": public.channel},
        labels=public.label_numbers,
        num_training_cases=sum(bool(case.labels) for case in cases),
        file_ending=_ENDING,
        dataset_name=public.title,
        reference=f"{public.reference}; {public.url}",
        license=public.licence,
        converted_by=f"nnunet_ext {__version__}",
    )


def _span(values: range) -> str:
    return str(values.start) if len(values) == 1 else f"{values.start} to {values.stop - 1}"
