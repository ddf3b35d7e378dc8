"""A made-up scan with the mask that the model predicts for it: proof that an installed model works as packed.

No patient's data are passed on: the scan is smooth noise with the intensities of the dataset's fingerprint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from nnunet_ext.nnunet.trained_model import load_predictor

MIN_AGREEMENT, MAX_DIFFERENCE = 0.99, 0.02
_TRIES = 3
_SMOOTHING = 2.5
"""Standard deviation of the Gaussian in voxels: structures of the size of small organs, rather than single voxels."""


@dataclass(frozen=True)
class Example:
    """A scan and its expected prediction.

    Attributes:
        image: Intensities (C, Z, Y, X); 2D has Z = 1.
        spacing: Spacing in mm, per axis.
        previous: Mask of the previous stage (Z, Y, X), for a cascade; else None.
        mask: Predicted labels (Z, Y, X).
        means: Mean probability of every output over the scan.
    """

    image: np.ndarray
    spacing: tuple[float, ...]
    previous: np.ndarray | None
    mask: np.ndarray
    means: np.ndarray

    def write(self, path: Path) -> None:
        arrays = {"image": self.image, "spacing": np.asarray(self.spacing), "mask": self.mask, "means": self.means}
        if self.previous is not None:
            arrays["previous"] = self.previous
        np.savez_compressed(path, allow_pickle=False, **arrays)

    @classmethod
    def read(cls, path: Path) -> "Example":
        """Reads an example.

        Raises:
            ValueError: for a damaged file, or one that holds more than numbers.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = dict(content)
            spacing = tuple(float(step) for step in arrays["spacing"])
            return cls(arrays["image"], spacing, arrays.get("previous"), arrays["mask"], arrays["means"])
        except Exception as error:  # the type depends on the damage
            raise ValueError(f"{path.name} is damaged: {error}") from error


@dataclass(frozen=True)
class Agreement:
    """How a prediction of the example agrees with the packed one.

    Attributes:
        voxels: Fraction of voxels with the same label.
        difference: Largest difference of the mean probabilities.
    """

    voxels: float
    difference: float

    @property
    def good(self) -> bool:
        """Whether no more than rounding differs; another device flips voxels between labels that are equally likely."""
        return self.voxels >= MIN_AGREEMENT and self.difference <= MAX_DIFFERENCE

    def __str__(self) -> str:
        return (
            f"{100 * self.voxels:.2f} % of the voxels have the packed label, "
            f"and mean probabilities differ by at most {self.difference:.1e}"
        )


def example_predictor(model: Path, folds: Sequence[str], checkpoint: str, device: str = "cpu") -> Any:
    """nnU-Net's predictor as examples are predicted: without mirroring, which takes longer and proves no more.

    Raises:
        ValueError, FileNotFoundError: as for `load_predictor`.
    """
    return load_predictor(model, device, folds, checkpoint, use_mirroring=False, allow_tqdm=False)


def make_example(predictor: Any) -> Example:
    """Makes scans and predicts them; the one in which the model finds most labels is the example."""
    found = []
    for seed in range(_TRIES):
        image, spacing, previous = _scan(predictor, np.random.default_rng(seed))
        mask, means = _predict(predictor, image, spacing, previous)
        found.append(Example(image, spacing, previous, mask, means))
    return max(found, key=lambda example: (len(np.unique(example.mask)), np.count_nonzero(example.mask)))


def prove(example: Example, predictor: Any) -> Agreement:
    """Predicts the example again."""
    mask, means = _predict(predictor, example.image, example.spacing, example.previous)
    if mask.shape != example.mask.shape or means.shape != example.means.shape:
        return Agreement(0.0, float("inf"))
    return Agreement(float((mask == example.mask).mean()), float(np.abs(means - example.means).max()))


def _scan(predictor: Any, random: np.random.Generator) -> tuple[np.ndarray, tuple[float, ...], np.ndarray | None]:
    """Noise of a patch's size at the plan's spacing, in the axes of the file, with the intensities of the dataset."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    patch, spacing = list(configuration.patch_size), list(configuration.spacing)
    if len(patch) == 2:
        patch, spacing = [1, *patch], [plans.original_median_spacing_after_transp[0], *spacing]
    back = plans.transpose_backward
    shape, steps = [patch[axis] for axis in back], tuple(float(spacing[axis]) for axis in back)
    channels = predictor.dataset_json.get("channel_names") or predictor.dataset_json["modality"]
    image = np.stack([_noise(random, shape, plans, number) for number in range(len(channels))])
    if configuration.previous_stage_name is None:
        return image, steps, None
    labels = np.asarray(sorted(predictor.label_manager.all_labels))
    ranks = np.argsort(np.argsort(gaussian_filter(random.standard_normal(shape), _SMOOTHING), axis=None))
    return image, steps, labels[ranks.reshape(shape) * len(labels) // ranks.size].astype(np.uint8)


def _noise(random: np.random.Generator, shape: Sequence[int], plans: Any, channel: int) -> np.ndarray:
    field = gaussian_filter(random.standard_normal(shape), [_SMOOTHING if size > 1 else 0 for size in shape])
    known = plans.foreground_intensity_properties_per_channel[str(channel)]
    values = known["mean"] + known["std"] * (field - field.mean()) / field.std()
    low, high = known["percentile_00_5"], known["percentile_99_5"]
    return np.clip(values, low, high).astype(np.float32)


def _predict(
    predictor: Any, image: np.ndarray, spacing: tuple[float, ...], previous: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    mask, probabilities = predictor.predict_single_npy_array(image, {"spacing": list(spacing)}, previous, None, True)
    return mask.astype(np.uint16), probabilities.reshape(len(probabilities), -1).mean(1).astype(np.float64)
