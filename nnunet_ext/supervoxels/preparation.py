"""Supervoxels of all cases of a preprocessed dataset."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_ext.supervoxels.supervoxel_cache import cached_supervoxels
from nnunet_ext.supervoxels.supervoxels import SupervoxelParameters
from nnunet_ext.utils.files import remove_left_overs


def make_supervoxels(
    dataset: Any,
    cases: Sequence[str],
    folder: str | Path,
    *,
    spacing: Callable[[dict], Sequence[float]],
    parameters: SupervoxelParameters,
    masked: bool,
    threads: int = 1,
) -> None:
    """Makes all supervoxels that are not in the folder yet; see `cached_supervoxels`.

    Args:
        dataset: nnU-Net's dataset of preprocessed cases.
        cases: Identifiers of the cases.
        folder: Folder for the files.
        spacing: Returns the spacing of the axes D, H and W in mm from the properties that the dataset holds for a case.
        parameters: Settings of the supervoxels.
        masked: Whether images were normalised within their nonzero voxels only. The other voxels are then 0, which is
            no longer a dark value, and count as background.
        threads: Number of threads; the compiled segmentation and NumPy release the interpreter's lock.

    Raises:
        ValueError: for an image that cannot be segmented, because of NaN for instance; it names the case.
        OSError: if a file cannot be written.
    """
    remove_left_overs(Path(folder))
    make = partial(_make, dataset=dataset, folder=folder, spacing=spacing, parameters=parameters, masked=masked)
    with ThreadPoolExecutor(threads) as pool:
        list(tqdm(pool.map(make, cases), "Supervoxels", total=len(cases), disable=None))


def _make(
    case: str,
    *,
    dataset: Any,
    folder: str | Path,
    spacing: Callable[[dict], Sequence[float]],
    parameters: SupervoxelParameters,
    masked: bool,
) -> None:
    data, segmentation, _, properties = dataset.load_case(case)
    image = np.asarray(data)
    if masked:
        # nnU-Net's preprocessing marks empty regions by -1 in the segmentation; labels are not used.
        image = np.where(np.asarray(segmentation) < 0, image.min((1, 2, 3), keepdims=True), image)
    try:
        cached_supervoxels(image, spacing(properties), folder, case, parameters)
    except ValueError as error:
        raise ValueError(f"the preprocessed case {case}: {error}") from error
