"""The tiles on which an exported file is compared with its network: of real images, if there are any."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_ext.nnunet.tiles import preprocess_scans, preprocessed_images, tiles_of

_PREPROCESSED = "nnUNet_preprocessed"
_CASES = 3
"""Images from which tiles are taken."""
_COARSE = 8
_DETAIL = 0.3
"""A random tile is a random map of one value per so many voxels of an axis, with this share of noise."""


@dataclass(frozen=True)
class Tiles:
    """Tiles.

    Attributes:
        tiles: (M, *P) each.
        source: Origin, in words.
    """

    tiles: list[Tensor]
    source: str


def find_tiles(predictor: Any, fold: str, folder: Path | None, number: int, input_channels: int) -> Tiles:
    """Tiles of scans in a folder, else of the preprocessed dataset, else of a random image.

    Args:
        predictor: nnU-Net's predictor with the model.
        fold: Fold of the model, whose validation cases are preferred.
        folder: Folder of scans; None: the preprocessed dataset, where nnUNet_preprocessed has it.
        number: Number of tiles.
        input_channels: M.

    Raises:
        FileNotFoundError: if there is no such folder of scans.
        ValueError: for a folder without usable scans, and for scans with a cascade, whose input includes masks.
    """
    configuration = predictor.configuration_manager
    patch = tuple(int(size) for size in configuration.patch_size)
    cascade = configuration.previous_stage_name is not None
    images: list[tuple[str, Any]] = []
    if folder is not None:
        if cascade:
            raise ValueError("-i does not go with a cascade, whose input includes the masks of its previous stage")
        origin = f"scans in {folder.name}"
        images = preprocess_scans(folder, _CASES, predictor.plans_manager, configuration, predictor.dataset_json)
    elif not cascade and (data := _preprocessed_folder(predictor)) is not None:
        origin = "the preprocessed dataset"
        images = preprocessed_images(data, fold, _CASES)
    if not images:
        return Tiles([random_tile(input_channels, patch)], "a random image, as no real one was given or found")
    share, more = divmod(number, len(images))
    numbers = [share + (i < more) for i in range(len(images))]
    cut = [tiles_of(image, patch, n) for (_, image), n in zip(images, numbers, strict=True) if n]
    names = ", ".join(name for (name, _), n in zip(images, numbers, strict=True) if n)
    return Tiles([torch.from_numpy(tile) for tiles in cut for tile in tiles], f"{origin}: {names}")


def _preprocessed_folder(predictor: Any) -> Path | None:
    """The model's preprocessed data, if nnU-Net's variable names a folder that has some."""
    root = os.environ.get(_PREPROCESSED)
    if not root:
        return None
    identifier = predictor.configuration_manager.data_identifier
    folder = Path(root, predictor.plans_manager.dataset_name, identifier)
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def random_tile(channels: int, patch: tuple[int, ...]) -> Tensor:
    """A smooth random map with noise, mean 0 and standard deviation 1, as normalised images have."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, channels, *(max(2, size // _COARSE) for size in patch), generator=generator)
    mode = "bilinear" if len(patch) == 2 else "trilinear"
    smooth = F.interpolate(coarse, patch, mode=mode, align_corners=True)[0]
    tile = smooth + _DETAIL * torch.randn(channels, *patch, generator=generator)
    axes = tuple(range(1, tile.ndim))
    return (tile - tile.mean(axes, keepdim=True)) / tile.std(axes, keepdim=True)
