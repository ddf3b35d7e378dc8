"""Episodes for a frozen encoder, whose maps of a slice are computed once and kept."""

# As the loader of images, which draws from NumPy's global generator.
# ruff: noqa: NPY002

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from numpy.typing import NDArray
from torch import Tensor

from nnunet_ext.fewshot.episodes import Drawn, SupervoxelEpisodes, augmentations, margin
from nnunet_ext.fewshot.slices import image_slice, window
from nnunet_ext.networks.faf_net.encoder import FAFEncoder


class DescribedSlice(NamedTuple):
    """A slice, augmented or not.

    Attributes:
        maps: Maps of the encoder's levels, (1, C, n, m), in float16.
        labels: Its supervoxels, (H, W).
        origin: Row and column of its first pixel in the case's slice; negative where it was padded.
    """

    maps: list[Tensor]
    labels: NDArray[np.int32]
    origin: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of maps and labels."""
        return self.labels.nbytes + sum(level.nbytes for level in self.maps)


class DescribedEpisodes(SupervoxelEpisodes):
    """`SupervoxelEpisodes` with descriptions of slices, ``support_described`` and ``query_described``, for images.

    A frozen encoder gives the same maps for the same image, so they are kept, in float16, in memory. Whole slices are
    encoded, at least as large as the window, and windows are read from their maps; if a slice is larger, positions at a
    window's border see what is beyond it instead of padding.

    Augmentations act on images, before the encoder, as without the cache: deformed maps would not be the maps of the
    deformed image. What is random is drawn in advance: of each slice there are one description as it is and `variants`
    descriptions of each kind of augmentation (gamma, deformation, both), with their own random numbers, of which an
    episode draws one. A slice is described when an episode first needs it, so the first epochs fill the cache.
    Supervoxels of deformed slices are read at the nearest pixel.

    Args:
        arguments: As for `SupervoxelEpisodes`.
        encoder: FAF-Net's encoder, frozen and of timm, on its device.
        variants: Descriptions of each kind of augmentation of a slice.
        gigabytes: Memory for descriptions; beyond it, those that were not used for longest are dropped.
        settings: As for `SupervoxelEpisodes`.

    Shape:
        support_described and query_described (E, 1, width, ceil(H / 4), ceil(W / 4)) float32; masks as in
        `SupervoxelEpisodes`
    """

    def __init__(
        self, *arguments: Any, encoder: FAFEncoder, variants: int = 4, gigabytes: float = 4.0, **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self.encoder, self.variants, self.limit = encoder, variants, gigabytes * 1e9
        self.images = self.dataset
        self.dataset = _Names(self.images.identifiers)  # images are read only for slices that are not described yet
        self.described: OrderedDict[tuple, DescribedSlice] = OrderedDict()
        self.nbytes = 0
        self._labels: OrderedDict[str, NDArray[np.int32]] = OrderedDict()
        self._label_bytes = 0
        self._transforms: dict[tuple[int, ...], tuple[Any, SpatialTransform]] = {}

    def make_slice(self, drawn: Drawn, position: int, changed: bool, deformed: bool) -> dict[str, Tensor]:
        """A slice's ``described`` (width, h, w) and ``masks`` (R, H, W); arguments as in `SupervoxelEpisodes`."""
        variant = np.random.randint(self.variants) if changed or deformed else 0
        key = (drawn.case, int(position), bool(changed), bool(deformed), int(variant))
        found = self.described.get(key)
        if found is None:
            found = self._describe(drawn, position, changed, deformed)
            self._keep(key, found)
        self.described.move_to_end(key)
        row, column = (s - o for s, o in zip(drawn.start, found.origin, strict=True))
        maps = [level.float() for level in found.maps]
        described = self.encoder.backbone.on_grid(maps, found.labels.shape, (row, column), self.size)
        masks = window(self.masks(found.labels, drawn.chosen), (row, column), self.size)
        return {"described": described[0], "masks": torch.from_numpy(masks).float()}

    def labels_of(self, case: str) -> NDArray[np.int32]:
        if case not in self._labels:
            labels = super().labels_of(case)
            self._labels[case] = labels
            self._label_bytes += labels.nbytes
            while self._label_bytes > self.limit and len(self._labels) > 1:
                self._label_bytes -= self._labels.popitem(last=False)[1].nbytes
        self._labels.move_to_end(case)
        return self._labels[case]

    def _describe(self, drawn: Drawn, position: int, changed: bool, deformed: bool) -> DescribedSlice:
        image = image_slice(self.images.load_case(drawn.case), position, self.one_hot)
        shape = image.shape[1:]
        size = tuple(map(max, shape, self.size))
        # A smaller image is centred, as `window_start` does.
        origin = (min(0, (shape[0] - size[0]) // 2), min(0, (shape[1] - size[1]) // 2))
        beyond = margin(size) if deformed else (0, 0)
        start = [o - m for o, m in zip(origin, beyond, strict=True)]
        large = [s + 2 * m for s, m in zip(size, beyond, strict=True)]
        sample = {
            "image": torch.from_numpy(window(image, start, large)),
            "segmentation": torch.from_numpy(window(drawn.labels[position][None], start, large)),
        }
        gamma, deformation = self._augmentations(size)
        if changed:
            sample = gamma(**sample)
        if deformed:
            sample = deformation(**sample)
        device = next(self.encoder.parameters()).device
        maps = self.encoder.maps(sample["image"][None].to(device))
        labels = sample["segmentation"][0].numpy().astype(np.int32)
        return DescribedSlice([level.half().cpu().contiguous() for level in maps], labels, origin)

    def _augmentations(self, size: tuple[int, ...]) -> tuple[Any, SpatialTransform]:
        if size not in self._transforms:
            self._transforms[size] = augmentations(size, "nearest")
        return self._transforms[size]

    def _keep(self, key: tuple, described: DescribedSlice) -> None:
        self.described[key] = described
        self.nbytes += described.nbytes
        while self.nbytes > self.limit and len(self.described) > 1:
            self.nbytes -= self.described.popitem(last=False)[1].nbytes


class _Names:
    """A dataset that gives the names of cases in place of their content."""

    def __init__(self, identifiers: Sequence[str]) -> None:
        self.identifiers = identifiers

    def load_case(self, identifier: str) -> str:
        """The identifier."""
        return str(identifier)
