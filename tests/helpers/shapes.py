"""Datasets of simple shapes with known answers, in nnU-Net's folders."""

import json
import os

import numpy as np
import SimpleITK as sitk

from nnunet_ext.nnunet.trainers import trainers_folder
from nnunet_ext.utils.subprocesses import console_script
from tests.helpers.shell import printed_by

SLICES, SIZE, BALL = 8, 40, (3, 4)
BUDGET = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "2", "NNUNET_EXT_VAL_ITERATIONS": "1"}


class Shapes:
    """A dataset of ten patients with two scans each, in two channels, and nnU-Net's folders.

    In all scans a rod runs through all slices and a ball is in slices 3 and 4, at the same place with the same cross
    section: the masks of one scan are those of any other.
    """

    dataset = "Dataset777_Shapes"

    def __init__(self, root):
        self.root, self.output = root, root / "out"
        folders = {name: root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        self.raw, self.preprocessed, self.results = (folder / self.dataset for folder in folders.values())
        for folder in folders.values():
            folder.mkdir(parents=True)
        self.environment = {
            **{name: str(folder) for name, folder in folders.items()},
            "nnUNet_extTrainer": str(trainers_folder()),
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "MPLBACKEND": "Agg",
            "OMP_NUM_THREADS": "1",
        }
        self.cases = [f"p{patient}_{frame}" for patient in range(10) for frame in ("ED", "ES")]
        self._lay_out()

    def _lay_out(self):
        generator = np.random.default_rng(0)
        labels = np.zeros((SLICES, SIZE, SIZE), np.uint8)
        labels[:, 6:18, 6:18] = 1
        labels[BALL[0] : BALL[1] + 1, 22:34, 20:36] = 2
        for folder in ("imagesTr", "labelsTr"):
            (self.raw / folder).mkdir(parents=True)
        for case in self.cases:
            images = [generator.normal(0, 3, labels.shape) + 40 + 60 * labels, generator.normal(50, 5, labels.shape)]
            for number, image in enumerate(images):
                self._write(image.astype(np.float32), f"imagesTr/{case}_000{number}")
            self._write(labels, f"labelsTr/{case}")
        content = {
            "channel_names": {"0": "MRI", "1": "noise"},
            "labels": {"background": 0, "rod": 1, "ball": 2},
            "numTraining": len(self.cases),
            "file_ending": ".nii.gz",
        }
        (self.raw / "dataset.json").write_text(json.dumps(content))

    def _write(self, values, name):
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((1.5, 1.5, 5.0))
        sitk.WriteImage(image, str(self.raw / f"{name}.nii.gz"))

    def options(self, *further, setting="2", configuration="2d"):
        return [
            *("fewshot", "--protocol", "paper", "-d", "777", "-c", configuration, "--setting", setting),
            *("--groups", r"^(p\d+)_", "--device", "cpu", "-np", "1", "-o", str(self.output), *further),
        ]

    def run(self, *further, **options):
        command = [console_script("nnunet_ext"), *self.options(*further, **options)]
        return printed_by(command, os.environ | self.environment | BUDGET, self.root, timeout=1800)


class FlatShapes(Shapes):
    """The same in colour images of one slice; ten patients have one each."""

    def _lay_out(self):
        self.cases = [case for case in self.cases if case.endswith("ED")]
        generator = np.random.default_rng(0)
        labels = np.zeros((SIZE, SIZE), np.uint8)
        labels[6:18, 6:18], labels[22:34, 20:36] = 1, 2
        for folder in ("imagesTr", "labelsTr"):
            (self.raw / folder).mkdir(parents=True)
        for case in self.cases:
            image = generator.integers(0, 30, (SIZE, SIZE, 3)) + 70 * labels[..., None]
            sitk.WriteImage(
                sitk.GetImageFromArray(image.astype(np.uint8), isVector=True),
                str(self.raw / "imagesTr" / f"{case}_0000.png"),
            )
            sitk.WriteImage(sitk.GetImageFromArray(labels), str(self.raw / "labelsTr" / f"{case}.png"))
        content = {
            "channel_names": {"0": "R", "1": "G", "2": "B"},
            "labels": {"background": 0, "rod": 1, "ball": 2},
            "numTraining": len(self.cases),
            "file_ending": ".png",
        }
        (self.raw / "dataset.json").write_text(json.dumps(content))
