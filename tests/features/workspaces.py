"""The shipped scans as datasets of every kind that nnU-Net supports, planned and preprocessed by its commands."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from skimage import io

from tests.features.forked import Forks
from tests.helpers.workspaces import NNUNetWorkspace

CASES = 4
IGNORE = 3
FRUGAL = {
    "nnUNet_def_n_proc": "1",  # every worker imports PyTorch again, which takes longer than its work here
    "OMP_WAIT_POLICY": "PASSIVE",  # nnU-Net uses one thread per core, and idle threads would spin at full speed
}
REGIONS = {"background": 0, "whole": [1, 2], "Posterior": 2}
_ANGLE = 0.3
_OBLIQUE = (np.cos(_ANGLE), -np.sin(_ANGLE), 0, np.sin(_ANGLE), np.cos(_ANGLE), 0, 0, 0, 1)


@dataclass(frozen=True)
class Kind:
    """A kind of dataset.

    Attributes:
        number: Number of the dataset, from which its name follows.
        change: Makes it of the shipped scans, which lie in the raw folder already.
        configurations: Configurations of nnU-Net's plan; a tiny one is added for each.
    """

    number: int
    change: Callable[["FeatureWorkspace"], None]
    configurations: tuple[str, ...] = ("3d_fullres",)


class FrugalWorkspace(NNUNetWorkspace):
    """Environment for many short commands: one thread and, with `Forks`, no imports."""

    def __init__(self, root: Path, cases: int, forks: Forks | None) -> None:
        self.forks = forks
        super().__init__(root, cases)

    def attempt(self, command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        if self.forks is None:
            return super().attempt(command, *arguments, **FRUGAL | environment)
        return self.forks.run((command, *arguments), self.environment | FRUGAL | environment, self.root)


class FeatureWorkspace(FrugalWorkspace):
    """A dataset of a kind, in nnU-Net's folders below `root`, beside those of other kinds; two folds of two cases.

    The sizes of tiny patches are multiples of `multiple`.
    """

    def __init__(self, root: Path, name: str, forks: Forks | None = None, multiple: int = 1) -> None:
        self.kind, self.multiple = KINDS[name], multiple
        self.dataset_id = self.kind.number
        self.dataset = f"Dataset{self.kind.number:03d}_{name.title().replace('_', '')}"
        super().__init__(root, CASES, forks)

    def _lay_out(self, cases: int) -> None:
        super()._lay_out(cases)
        self.change_files("imagesTr", "labelsTr", "imagesTs", change=_middle)
        self.kind.change(self)

    def _prepare(self) -> None:
        number, configurations = str(self.dataset_id), self.kind.configurations
        self.run("nnUNetv2_plan_and_preprocess", "-d", number, "-c", *configurations, *("-np", "1", "-npfp", "1"))
        plans = self.plans
        for name in configurations:
            planned = plans["configurations"][name]
            plans["configurations"][f"{name}_tiny"] = self.tiny(planned, tiny_patch(planned, self.multiple))
        self.write_plans(plans)
        names = sorted(file.name.split(".")[0] for file in (self.raw / "labelsTr").iterdir())
        halves = names[::2], names[1::2]
        splits = [{"train": train, "val": val} for train, val in (halves, halves[::-1])]
        (self.preprocessed / "splits_final.json").write_text(json.dumps(splits))

    def add_cascade(self) -> None:
        """A low resolution and the cascade on it, which nnU-Net plans for large images only."""
        plans = self.plans
        configurations = plans["configurations"]
        lowres = configurations["3d_fullres_tiny"] | {
            "data_identifier": "nnUNetPlans_3d_lowres",
            "spacing": [2 * s for s in configurations["3d_fullres"]["spacing"]],
            "median_image_size_in_voxels": [s / 2 for s in configurations["3d_fullres"]["median_image_size_in_voxels"]],
            "next_stage": "3d_cascade_fullres",
        }
        configurations["3d_lowres"] = lowres
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres_tiny", "previous_stage": "3d_lowres"}
        self.write_plans(plans)
        self.run("nnUNetv2_preprocess", "-d", str(self.dataset_id), "-c", "3d_lowres", "-np", "1")

    def change_dataset_json(self, **changes: object) -> None:
        file = self.raw / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def change_files(self, *folders: str, change: Callable[[sitk.Image], sitk.Image]) -> None:
        for folder in folders:
            for file in sorted((self.raw / folder).iterdir()):
                sitk.WriteImage(change(sitk.ReadImage(str(file))), str(file))

    @property
    def scans(self) -> list[Path]:
        """The first channels of the images to predict."""
        return sorted((self.raw / "imagesTs").glob("*_0000.*"))


def tiny_patch(configuration: dict, multiple: int = 1) -> list[int]:
    """One slice in 2D; in 3D several tiles per scan, thin along the axis with longer voxels."""
    spacing = configuration["spacing"]
    if len(spacing) == 2:
        patch = configuration["patch_size"]
    else:
        patch = [4 if s > 2 * min(spacing) else p for p, s in zip((24, 32, 24), spacing, strict=True)]
    if multiple == 1:
        return patch
    patch = [-(-size // multiple) * multiple for size in patch]
    patch[-2] = max(patch[-2], 2 * multiple)  # norms have no variance over the one voxel of a lowest level
    return patch


def _middle(image: sitk.Image) -> sitk.Image:
    """Narrow, so that few tiles cover it, but complete along the axis of the hippocampus."""
    (x, _, z), width = image.GetSize(), 24
    return image[(x - width) // 2 : (x + width) // 2, :, (z - width) // 2 : (z + width) // 2]


def _oblique(space: FeatureWorkspace) -> None:
    """Rotated and far from the origin, like real scans."""

    def change(image: sitk.Image) -> sitk.Image:
        image.SetDirection(_OBLIQUE)
        image.SetOrigin((-12.5, 30.0, 7.25))
        return image

    space.change_files("imagesTr", "labelsTr", "imagesTs", change=change)


def _regions(space: FeatureWorkspace) -> None:
    space.change_dataset_json(labels=REGIONS, regions_class_order=[1, 2])


def _ignore(space: FeatureWorkspace) -> None:
    labels = json.loads((space.raw / "dataset.json").read_text())["labels"]
    space.change_dataset_json(labels=labels | {"ignore": IGNORE})
    _leave_out(space)


def _regions_ignore(space: FeatureWorkspace) -> None:
    space.change_dataset_json(labels=REGIONS | {"ignore": IGNORE}, regions_class_order=[1, 2])
    _leave_out(space)


def _leave_out(space: FeatureWorkspace) -> None:
    """Labels two of every three slices, except at the edge of the image."""

    def change(label: sitk.Image) -> sitk.Image:
        array = sitk.GetArrayFromImage(label)
        array[::3] = IGNORE
        array[:, :, :4] = IGNORE
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(label)
        return changed

    space.change_files("labelsTr", change=change)


def _two_modalities(space: FeatureWorkspace) -> None:
    """The second modality is the smoothed first one; a second scan to predict has another second modality."""
    for folder in ("imagesTr", "imagesTs"):
        for file in sorted((space.raw / folder).iterdir()):
            smooth = sitk.SmoothingRecursiveGaussian(sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkFloat32), 2)
            sitk.WriteImage(smooth, str(file).replace("_0000", "_0001"))
    (scan,) = space.scans
    image = sitk.ReadImage(str(scan))
    sitk.WriteImage(image, str(scan.with_name("other_0000.nii.gz")))
    flipped = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[::-1].astype(np.float32))
    flipped.CopyInformation(image)
    sitk.WriteImage(flipped, str(scan.with_name("other_0001.nii.gz")))
    space.change_dataset_json(channel_names={"0": "MRI", "1": "smooth MRI"})


def _anisotropic(space: FeatureWorkspace) -> None:
    space.change_files("imagesTr", "labelsTr", "imagesTs", change=lambda image: image[:, :, ::3])


def _png_rgb(space: FeatureWorkspace) -> None:
    """A slice of every scan, where there are labels one that shows most of both; its neighbours are red and blue."""
    chosen = {}
    for folder in ("labelsTr", "imagesTr", "imagesTs"):
        for file in sorted((space.raw / folder).iterdir()):
            volume = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            if folder == "labelsTr":
                both = np.minimum(*((volume[1:-1] == label).sum((1, 2)) for label in (1, 2)))
                chosen[file.name[:15]] = 1 + int(both.argmax())
            middle = chosen.get(file.name[:15], len(volume) // 2)
            if folder == "labelsTr":
                picture = volume[middle].astype(np.uint8)
            else:
                colours = np.moveaxis(volume[middle - 1 : middle + 2], 0, -1).astype(float)
                picture = (255 * colours / colours.max()).round().astype(np.uint8)
            io.imsave(str(file).replace(".nii.gz", ".png"), picture, check_contrast=False)
            file.unlink()
    space.change_dataset_json(channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")


KINDS = {
    "plain": Kind(11, _oblique, ("3d_fullres", "2d")),
    "regions": Kind(12, _regions),
    "ignore": Kind(13, _ignore),
    "regions_ignore": Kind(14, _regions_ignore),
    "two_modalities": Kind(15, _two_modalities),
    "anisotropic": Kind(16, _anisotropic),
    "png_rgb": Kind(17, _png_rgb, ("2d",)),
}
