"""Small made-up trees in the layouts of public data sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_ext.utils.locales import kept_locale
from tests.helpers.label_files import write

SHAPE = (5, 12, 14)
SPACING = (1.5, 1.25, 4.0)
ORIGIN = (-30.0, 12.0, 100.0)
# Oblique, as abdominal MRI often is: rows and columns turned by 10 degrees about x.
COSINE, SINE = float(np.cos(np.pi / 18)), float(np.sin(np.pi / 18))
DIRECTION = (1.0, 0.0, 0.0, 0.0, COSINE, -SINE, 0.0, SINE, COSINE)


def scan(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Voxels in which no two slices, rows or columns are alike."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def label_map(values: Sequence[int], seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A map with background and all of some values, without symmetry."""
    result = np.random.default_rng(seed).choice([0, *values], shape)
    result.ravel()[: len(values)] = values
    return result.astype(np.int16)


def synapse(root: Path, labelled: int = 2, unlabelled: int = 1, shape: tuple[int, ...] = SHAPE) -> Path:
    """Synapse-CT: RawData/Training and RawData/Testing."""
    raw = root / "RawData"
    for case in range(1, labelled + 1):
        write(raw / f"Training/img/img{case:04}.nii.gz", scan(case, shape))
        write(raw / f"Training/label/label{case:04}.nii.gz", label_map(range(1, 14), case, shape))
    for case in range(61, 61 + unlabelled):
        write(raw / f"Testing/img/img{case:04}.nii.gz", scan(case, shape))
    return raw


def cmr(root: Path, labelled: int = 2, unlabelled: int = 1, shape: tuple[int, ...] = SHAPE) -> Path:
    """MS-CMRSeg 2019: all images in one folder with other sequences, labels in others."""
    for case in range(1, labelled + unlabelled + 1):
        for sequence in ("C0", "T2", "LGE"):
            write(root / f"c0t2lge/patient{case}_{sequence}.nii.gz", scan(case, shape))
    for case in range(1, labelled + 1):
        write(root / f"c0gt/patient{case}_C0_manual.nii.gz", label_map((200, 500, 600), case, shape))
        write(root / f"lgegt/patient{case}_LGE_manual.nii.gz", label_map((200, 500, 600), 99, shape))
    return root


def prostate(root: Path, labelled: int = 2, shape: tuple[int, ...] = SHAPE) -> Path:
    """Prostate-MRI: data/N_img.nii and data/N_mask.nii, and the institution of each case."""
    for case in range(1, labelled + 1):
        write(root / f"data/{case:06}_img.nii", scan(case, shape))
        write(root / f"data/{case:06}_mask.nii", label_map(range(1, 9), case, shape))
    lines = [f"{case:06} {'UCL' if case % 2 else 'Nijmegen'}\n" for case in range(1, labelled + 1)]
    (root / "institution.txt").write_text("".join(lines))
    return root


@dataclass(frozen=True)
class Slices:
    """A DICOM series of one file per slice.

    Attributes:
        positions: Places of the slices along the normal, in slice distances; None: 0, 1, 2, ...
        instances: Their instance numbers, which are in the names as well; None: 1, 2, 3, ...
        one_series: Whether they share a series UID; those of CHAOS do not all do.
    """

    positions: Sequence[float] | None = None
    instances: Sequence[int] | None = None
    one_series: bool = False

    @kept_locale()
    def write(self, folder: Path, volume: np.ndarray) -> list[Path]:
        """Writes the slices of a volume (D, H, W) and returns their files."""
        folder.mkdir(parents=True, exist_ok=True)
        directions = np.reshape(DIRECTION, (3, 3))
        rows_and_columns = "\\".join(f"{number:.10g}" for number in (*directions[:, 0], *directions[:, 1]))
        positions, instances = self.positions or range(len(volume)), self.instances or range(1, len(volume) + 1)
        files = []
        for picture, position, instance in zip(volume, positions, instances, strict=True):
            image = sitk.GetImageFromArray(picture)
            image.SetSpacing(SPACING[:2])
            place = np.array(ORIGIN) + position * SPACING[2] * directions[:, 2]
            tags = {
                "0008|0060": "MR",
                "0020|000e": f"1.2.3.{1 if self.one_series else instance}",
                "0020|0013": str(instance),
                "0020|0032": "\\".join(f"{number:.10g}" for number in place),
                "0020|0037": rows_and_columns,
                "0018|0050": str(SPACING[2]),
            }
            for tag, value in tags.items():
                image.SetMetaData(tag, value)
            files.append(folder / f"IMG-0002-{instance:05}.dcm")
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(files[-1]))
            writer.Execute(image)
        return files


CHAOS_VALUES = (63, 126, 189, 252)


def chaos(root: Path, unlabelled: int = 1, slices: Slices = Slices(), shape: tuple[int, ...] = SHAPE) -> Path:
    """CHAOS: two patients of Train_Sets and some of Test_Sets, with T2-SPIR beside T1-DUAL and CT."""
    labelled = 2
    for case in range(1, labelled + unlabelled + 1):
        part = "Train_Sets" if case <= labelled else "Test_Sets"
        patient = root / part / "MR" / str(case)
        files = slices.write(patient / "T2SPIR" / "DICOM_anon", scan(case, shape))
        slices.write(patient / "T1DUAL" / "DICOM_anon" / "InPhase", scan(99, shape))
        if case > labelled:
            continue
        for file, picture in zip(files, label_map(CHAOS_VALUES, case, shape), strict=True):
            write(patient / "T2SPIR" / "Ground" / f"{file.stem}.png", picture.astype(np.uint8))
            write(patient / "T1DUAL" / "Ground" / f"{file.stem}.png", picture.astype(np.uint8))
    write(root / "Train_Sets" / "CT" / "1" / "Ground" / "liver_GT_000.png", np.zeros((4, 4), np.uint8))
    return root


TREES = {"synapse-ct": synapse, "chaos-mr": chaos, "ms-cmrseg": cmr, "prostate-mri": prostate}
"""Makers of trees by the set's name on the command line."""
