"""Tiles of preprocessed images, as nnU-Net's sliding window cuts them."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.nnunet.json_files import read_splits
from nnunet_ext.nnunet.scans import read_scan, scans_in

_STEP = 0.5
"""Step of the sliding window, as a fraction of the patch."""


def tiles_of(image: np.ndarray, patch_size: Sequence[int], number: int) -> list[np.ndarray]:
    """Up to `number` tiles of a preprocessed image, evenly spread over those of the sliding window.

    Shape:
        (M, *size) -> (M, *P) each; in 2D, tiles are cut from slices along the first axis.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image
    from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

    patch = tuple(patch_size)
    padded = pad_nd_image(image, patch, "constant", {"constant_values": 0})
    sizes = padded.shape[-len(patch) :]
    slices = [[slice(start, start + 1) for start in range(n)] for n in padded.shape[1 : -len(patch)]]
    windows = compute_steps_for_sliding_window(sizes, patch, _STEP)
    windows = [[slice(at, at + p) for at in starts] for starts, p in zip(windows, patch, strict=True)]
    places = list(product(*slices, *windows))
    # The middles of equal parts: a single tile is then the one in the middle.
    chosen = sorted({int((i + 0.5) * len(places) / number) for i in range(number)})
    indices = [(slice(None), *places[i]) for i in chosen]
    return [np.array(padded[index], dtype=np.float32).reshape(len(image), *patch) for index in indices]


def preprocessed_images(folder: Path, fold: str, number: int) -> list[tuple[str, np.ndarray]]:
    """Names and images (M, *size) of up to `number` preprocessed cases, those of the fold's validation first.

    Args:
        folder: Preprocessed data of a configuration, beside splits_final.json.
        fold: Number of a fold, or all.
        number: Number of images.
    """
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset_class = infer_dataset_class(str(folder))
    cases = sorted(dataset_class.get_identifiers(str(folder)))
    splits = folder.parent / "splits_final.json"
    held_out: list[str] = []
    if fold != "all" and splits.is_file():
        content = read_splits(splits)
        held_out = content[int(fold)]["val"] if int(fold) < len(content) else []
    cases.sort(key=lambda case: case not in held_out)
    dataset = dataset_class(str(folder), cases[:number])
    return [(case, np.asarray(dataset.load_case(case)[0][:])) for case in cases[:number]]


def preprocess_scans(
    folder: Path, number: int, plans: Any, configuration: Any, dataset_json: dict[str, Any]
) -> list[tuple[str, np.ndarray]]:
    """Names and preprocessed images (M, *size) of up to `number` scans of a folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for a folder without scans, and for a scan that cannot be used.
    """
    scans, failures = scans_in(folder, [dataset_json["file_ending"]])
    if not scans:
        raise ValueError(f"{folder} has no complete scan: {failures[0].case} {failures[0].reason}")
    reader, preprocessor = plans.image_reader_writer_class(), configuration.preprocessor_class(verbose=False)
    channels = len(dataset_json.get("modality") or dataset_json["channel_names"])
    images = []
    for scan in scans[:number]:
        image, properties = read_scan(reader, scan.files)
        if len(image) != channels:
            raise ValueError(f"{scan.case} in {folder} has {len(image)} channels, the model expects {channels}")
        with redirect_stdout(StringIO()):
            data, _, _ = preprocessor.run_case_npy(image, None, properties, plans, configuration, dataset_json)
        images.append((scan.case, data))
    return images
