"""Episodes of few-shot training from unlabelled images: a supervoxel is the class, two of its slices are the scans.

Source: the self-supervision of Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation through
self-supervision with supervoxels", MedIA 2022 (ADNet), with which Cheng et al. train FAF-Net.
"""

# nnU-Net seeds NumPy's global generator in every worker, and its transforms draw from it.
# ruff: noqa: NPY002

from collections.abc import Mapping, Sequence
from math import pi, prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext.fewshot.slices import image_slice, window, window_start
from nnunet_ext.supervoxels.supervoxel_cache import read_supervoxels

# Not in the paper. Mild, because neighbouring slices differ anyway.
_GAMMA = (0.5, 1.5)
_ROTATION = 15 / 180 * pi
_SCALING = (0.8, 1.25)
_ELASTIC_SCALE, _ELASTIC_MAGNITUDE = (0.1, 0.2), 0.04  # relative to the slice's size
_MARGIN = 0.25
"""Margin on each side, relative to the size, with which slices are cut before rotation, to avoid empty corners."""


class Drawn(NamedTuple):
    """The case, classes and place in the slices that are drawn for an episode.

    Attributes:
        case: Result of the dataset's `load_case`.
        labels: Supervoxels of the case, (D, H, W).
        chosen: Those that are classes of the episode.
        start: Row and column of the window of `size` in the slices; negative where they are smaller.
    """

    case: Any
    labels: NDArray[np.int32]
    chosen: NDArray[np.intp]
    start: tuple[int, int]


class SupervoxelEpisodes:
    """Endless batches of episodes, each from one image with its supervoxels in the cache.

    An episode is a random supervoxel of a random image in two neighbouring slices, in random order: one is the support,
    the other the query. One of the two, chosen at random, is changed by a random gamma, and one, chosen anew, by a
    random rotation, scaling and elastic deformation. A supervoxel counts in slices where it has at least `least_area`
    pixels. In an image of one slice, that slice is both. With several `classes`, further supervoxels of the same two
    slices are classes of the episode too; if there are too few, the remaining masks are empty.

    The iterator suits nnU-Net's augmenters: it keeps its state when it is copied to another process, and draws from
    NumPy's and torch's global generators, as nnU-Net's loaders do.

    Args:
        dataset: nnU-Net's dataset of the training cases; their segmentations are not read.
        folder: Folder to which `make_supervoxels` has written.
        size: (H, W) of the slices in pixels; they are cut out around a point near the supervoxel; smaller ones are
            padded with 0.
        episodes: E, episodes per batch.
        one_hot: Labels of the previous stage's segmentation that are channels of the input (nnU-Net's cascade).
        classes: R, largest number of supervoxels in an episode; the paper's is 1.
        left_out: Slices (D,) of each case that no episode may use, see `slices_left_out`; None: all may be used.

    Shape:
        support_images and query_images (E, 1, M, H, W) float32; support_masks and query_masks (E, 1, R, H, W) float32

    Raises:
        ValueError: on the first batch, if no supervoxel is large enough.
    """

    def __init__(
        self,
        dataset: Any,
        folder: str | Path,
        size: Sequence[int],
        *,
        episodes: int = 1,
        one_hot: Sequence[int] = (),
        classes: int = 1,
        left_out: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> None:
        self.dataset, self.folder, self.size = dataset, folder, tuple(size)
        self.left_out = left_out
        self.episodes, self.one_hot, self.classes = episodes, tuple(one_hot), classes
        self.cases = sorted(dataset.identifiers)
        self.gamma, self.deformation = augmentations(self.size)
        self.crop = SpatialTransform(self.size, patch_center_dist_from_border=0, random_crop=False)

    def set_thread_id(self, _: int) -> None:
        """Called by nnU-Net's augmenters in each worker, which all start with the same state of torch's generator."""
        torch.manual_seed(np.random.randint(2**31))

    def __iter__(self) -> "SupervoxelEpisodes":
        return self

    def __next__(self) -> dict[str, Tensor]:
        episodes = [self.draw() for _ in range(self.episodes)]
        return {key: torch.stack([episode[key] for episode in episodes]) for key in episodes[0]}

    def draw(self) -> dict[str, Tensor]:
        """One episode, without the axis E."""
        case, labels, chosen, positions = self._choose()
        positions = np.random.permutation(positions)
        # Anywhere in the window: a supervoxel that is always at the centre could be found without looking at the image.
        inside = np.argwhere((labels[positions] == chosen[0]).any(0))
        point = inside[np.random.randint(len(inside))] + np.random.uniform(-0.5, 0.5, 2) * self.size
        row, column = window_start(point, labels.shape[1:], self.size)
        drawn = Drawn(case, labels, chosen, (row, column))
        changed, deformed = np.random.randint(2, size=2)
        episode: dict[str, Tensor] = {}
        for i, role in enumerate(("support", "query")):
            made = self.make_slice(drawn, positions[i], i == changed, i == deformed)
            episode |= {f"{role}_{kind}": value[None] for kind, value in made.items()}
        return episode

    def make_slice(self, drawn: Drawn, position: int, changed: bool, deformed: bool) -> dict[str, Tensor]:
        """A slice's ``images`` (M, H, W) and ``masks`` (R, H, W).

        Args:
            drawn: The episode.
            position: Index of the slice.
            changed: Whether it gets a random gamma.
            deformed: Whether it gets a random deformation.
        """
        image, mask = image_slice(drawn.case, position, self.one_hot), self.masks(drawn.labels[position], drawn.chosen)
        beyond = margin(self.size)
        start = [s - m for s, m in zip(drawn.start, beyond, strict=True)]
        size = [s + 2 * m for s, m in zip(self.size, beyond, strict=True)]
        sample = {
            "image": torch.from_numpy(window(image, start, size)),
            "segmentation": torch.from_numpy(window(mask, start, size)).float(),
        }
        if changed:
            sample = self.gamma(**sample)
        sample = (self.deformation if deformed else self.crop)(**sample)
        return {"images": sample["image"], "masks": sample["segmentation"]}

    def masks(self, labels: NDArray[np.int32], chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
        """(H, W) -> (R, H, W): a mask for each class of an episode; those that it lacks are empty."""
        masks = labels == chosen[:, None, None]
        return np.pad(masks, [(0, self.classes - len(chosen)), (0, 0), (0, 0)])

    def labels_of(self, case: str) -> NDArray[np.int32]:
        """Supervoxels of a case."""
        return read_supervoxels(self.folder, case)

    def _choose(self) -> tuple[Any, NDArray[np.int32], NDArray[np.intp], NDArray[np.intp]]:
        """A case, its supervoxels, the labels chosen among them, and the two slices."""
        for case in np.random.permutation(self.cases):
            labels = self.labels_of(case)
            pairs = neighbouring_slices(labels)
            if self.left_out is not None:
                pairs = pairs[~self.left_out[case][pairs[:, 1:]].any(1)]
            if len(pairs):
                label = np.random.choice(np.unique(pairs[:, 0]))
                of_label = pairs[pairs[:, 0] == label, 1:]
                positions = of_label[np.random.randint(len(of_label))]
                others = pairs[(pairs[:, 1] == positions[0]) & (pairs[:, 0] != label), 0]
                chosen = np.array([label, *np.random.permutation(others)[: self.classes - 1]])
                return self.dataset.load_case(case), labels, chosen, positions
        raise ValueError(
            f"none of the {len(self.cases)} training images has a supervoxel of {least_area(labels.shape)} pixels in "
            f"two neighbouring slices{'' if self.left_out is None else ' that are not left out'}: give "
            "SupervoxelParameters a larger min_size or a lower threshold"
            + ("" if self.left_out is None else ", or leave out fewer classes")
        )


def augmentations(size: Sequence[int], seg_mode: str = "bilinear") -> tuple[GammaTransform, SpatialTransform]:
    """The random gamma, and the random rotation, scaling and elastic deformation.

    Args:
        size: (H, W) of the deformation's result; it expects `margin` more on every side.
        seg_mode: How segmentations are interpolated.
    """
    gamma = GammaTransform(_GAMMA, p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0)
    deformation = SpatialTransform(
        size,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_elastic_deform=1,
        elastic_deform_scale=_ELASTIC_SCALE,
        elastic_deform_magnitude=(0, _ELASTIC_MAGNITUDE * min(size)),
        p_rotation=1,
        rotation=(-_ROTATION, _ROTATION),
        p_scaling=1,
        scaling=_SCALING,
        mode_seg=seg_mode,
    )
    return gamma, deformation


def margin(size: Sequence[int]) -> list[int]:
    """Pixels beyond each side of the window with which slices are cut before they are deformed."""
    return [round(_MARGIN * s) for s in size]


def least_area(shape: Sequence[int]) -> int:
    """Pixels that a supervoxel needs in a slice: the authors' 200 of 256 x 256, in smaller slices in proportion, but at
    least 16, one position of a feature map at stride 4."""
    return int(np.clip(round(prod(shape[-2:]) * 200 / 256**2), 16, 200))


def neighbouring_slices(labels: NDArray[np.int32]) -> NDArray[np.intp]:
    """Supervoxels with pairs of neighbouring slices in both of which they are large enough.

    Shape:
        (D, H, W) -> (N, 3): label, slice, neighbouring slice; in a volume of one slice, both are that one
    """
    count = int(labels.max()) + 1
    areas = np.stack([np.bincount(slice_.ravel(), minlength=count) for slice_ in labels])
    enough = areas >= least_area(labels.shape)
    enough[:, 0] = False  # background
    step = min(1, len(labels) - 1)
    positions, found = np.nonzero(enough[: len(labels) - step] & enough[step:])
    return np.stack([found, positions, positions + step], 1)
