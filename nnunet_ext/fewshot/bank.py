"""Labelled support slices, drawn from nnU-Net's preprocessed training cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import join, load_pickle

from nnunet_ext.fewshot.slices import image_slice, window, window_start

_ENOUGH_VOXELS = 200
"""Number of voxels with which a slice shows a class well; smaller structures are drawn from their larger slices."""

Labels = tuple[int, ...]


@dataclass(frozen=True)
class SupportSlices:
    """N slices with masks of R classes.

    Attributes:
        images: (N, M, H, W), float32.
        masks: (N, R, H, W), bool.
        labelled: (N, H, W), bool: pixels without the ignore label; those beyond the image count as labelled.
        counts: Number of slices drawn for each class; a slice drawn for one class may show others.
    """

    images: np.ndarray
    masks: np.ndarray
    labelled: np.ndarray
    counts: tuple[int, ...]


def class_labels(label_manager: Any) -> list[Labels]:
    """The labels that make up each of nnU-Net's foreground outputs."""
    if label_manager.has_regions:
        return [tuple(r) if isinstance(r, (tuple, list)) else (r,) for r in label_manager.foreground_regions]
    return [(label,) for label in label_manager.foreground_labels]


class SupportBank:
    """Draws support slices of every class from a dataset of preprocessed cases.

    Args:
        dataset: nnU-Net's dataset of the training fold.
        classes: Labels of each class; see `class_labels`.
        names: Names of the classes, for messages.
        size: (H, W) of the slices in voxels; they are cut out around the class; smaller images are padded with 0.
        one_hot: Labels of the previous stage's segmentation that are channels of the input (nnU-Net's cascade).
        ignore: nnU-Net's ignore label; None: all pixels are labelled.

    Raises:
        ValueError: for a class that no case has; the message names it.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        classes: Sequence[Labels],
        names: Sequence[str],
        size: Sequence[int],
        one_hot: Sequence[int] = (),
        ignore: int | None = None,
    ) -> None:
        self.dataset, self.classes, self.size, self.one_hot = dataset, list(classes), tuple(size), tuple(one_hot)
        self.ignore = ignore
        self.cases = sorted(dataset.identifiers)
        self.showing = {case: self._classes_of(case) for case in self.cases}
        for index, name in enumerate(names):
            if not any(index in shown for shown in self.showing.values()):
                raise ValueError(
                    f"no training case of this fold has the class {name!r} {self.classes[index]}: there is no support "
                    "for it; use another split, or leave the class out of dataset.json"
                )

    def draw(self, shots: int, generator: np.random.Generator) -> SupportSlices:
        """`shots` slices of every class, from as many cases as possible; fewer if the fold has no more.

        Slices with at least 200 voxels of the class are eligible; for smaller structures, it is the upper half of the
        case's slices that show them.
        """
        slices, counts = [], []
        order = list(generator.permutation(self.cases))
        for index in range(len(self.classes)):
            chosen = self._choose(index, shots, [case for case in order if index in self.showing[case]], generator)
            counts.append(len(chosen))
            slices += [self._cut(case, position, index) for case, position in chosen]
        images, masks, labelled = (np.stack(parts) for parts in zip(*slices, strict=True))
        return SupportSlices(images, masks, labelled, tuple(counts))

    def _classes_of(self, case: str) -> set[int]:
        """Classes that a case shows, from the voxels that nnU-Net's preprocessing lists, without opening the image."""
        locations = load_pickle(join(self.dataset.source_folder, f"{case}.pkl"))["class_locations"]
        shown = [set(key) if isinstance(key, tuple) else {key} for key, voxels in locations.items() if len(voxels)]
        # The list does not tell the labels within a region; with an ignore label there is a key of all labels.
        return {index for index, labels in enumerate(self.classes) if any(key <= set(labels) for key in shown)}

    def _choose(
        self, index: int, shots: int, cases: Sequence[str], generator: np.random.Generator
    ) -> list[tuple[str, int]]:
        """Draws one slice per case, and further slices of the same cases only if there are fewer cases than shots."""
        chosen: list[tuple[str, int]] = []
        spare: list[tuple[str, int]] = []
        for case in cases:
            if len(chosen) == shots:
                return chosen
            eligible = [(case, int(k)) for k in generator.permutation(self._eligible(case, index))]
            chosen += eligible[:1]
            spare += eligible[1:]
        return chosen + [spare[i] for i in generator.permutation(len(spare))[: shots - len(chosen)]]

    def _eligible(self, case: str, index: int) -> np.ndarray:
        segmentation = self.dataset.load_case(case)[1]
        voxels = np.isin(segmentation[0], self.classes[index]).sum((1, 2))
        present = voxels[voxels > 0]
        if not len(present):
            return np.array([], int)
        return np.flatnonzero(voxels >= min(_ENOUGH_VOXELS, np.median(present)))

    def _cut(self, case: str, position: int, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A slice (M, H, W) around a class, the masks (R, H, W) of all of them, and where it is labelled (H, W)."""
        loaded = self.dataset.load_case(case)
        image, labels = image_slice(loaded, position, self.one_hot), np.asarray(loaded[1][0, position])
        masks = np.stack([np.isin(labels, of_class) for of_class in self.classes])
        start = window_start(np.argwhere(masks[index]).mean(0), labels.shape, self.size)
        ignored = window((labels == self.ignore)[None], start, self.size)[0]
        return window(image, start, self.size), window(masks, start, self.size), ~ignored
