"""Label maps and folders of predictions, made in a few lines."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

SHAPE, SPACING = (6, 8, 10), (1.0, 1.5, 2.0)
DATASET = {
    "channel_names": {"0": "MRI"},
    "labels": {"background": 0, "first": 1, "second": 2},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def blobs(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A label map with two labels, one in either half, and random holes; no symmetry."""
    generator = np.random.default_rng(seed)
    values = np.zeros(shape, np.uint8)
    middle = shape[-1] // 2
    values[..., : middle - 1] = 1
    values[..., middle:] = 2
    values[generator.random(shape) < 0.3] = 0
    return values


def to_image(values: np.ndarray, spacing=SPACING, origin=(5.0, -3.0, 7.0)) -> sitk.Image:
    """An image with `spacing` in the order (x, y, z)."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(spacing[: image.GetDimension()])
    image.SetOrigin(origin[: image.GetDimension()])
    return image


def write(path: Path, values: np.ndarray, **geometry) -> Path:
    """Writes a map: a picture where the name says so, else by SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    else:
        sitk.WriteImage(to_image(values, **geometry), str(path))
    return path


class HeldOut:
    """True labels of two cases and predictions of two methods, for `nnunet_ext compare --predictions`."""

    def __init__(self, root: Path, ending: str = ".nii.gz", shape: tuple[int, ...] = SHAPE) -> None:
        self.root, self.ending = root, ending
        for number, name in enumerate(("labels", "A", "B")):
            for case in range(2):
                write(self.file(name, case), blobs(10 * number + case, shape))
        for name in ("A", "B"):
            self.describe(name, **DATASET | {"file_ending": ending})

    def file(self, folder: str, case: int = 0) -> Path:
        return self.root / folder / f"case{case}{self.ending}"

    def describe(self, folder: str, **dataset) -> None:
        (self.root / folder / "dataset.json").write_text(json.dumps(dataset))

    @property
    def call(self) -> list[str]:
        folders = [f"{name}={self.root / name}" for name in ("A", "B")]
        output = ("-np", "1", "-o", str(self.root / "report"))
        return ["compare", "--predictions", *folders, "--labels", str(self.root / "labels"), *output]
