"""Datasets with the fingerprint of scans of any size, for planning."""

import json
import shutil
from importlib import resources
from pathlib import Path

INTENSITIES = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)


class Dataset:
    """A raw dataset and the fingerprint of scans of any size, which are not there in that size."""

    name = "Dataset321_Planned"
    cases = 40

    def __init__(self, root: Path, monkeypatch) -> None:
        self.raw, self.preprocessed = (root / key / self.name for key in ("nnUNet_raw", "nnUNet_preprocessed"))
        for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / key).mkdir()
            monkeypatch.setenv(key, str(root / key))
        self.preprocessed.mkdir()
        for folder in ("imagesTr", "labelsTr"):
            (self.raw / folder).mkdir(parents=True)
        scans = Path(str(resources.files("nnunet_ext") / "data" / "hippocampus"))
        self.image = sorted((scans / "imagesTr").iterdir())[0]
        self.label = sorted((scans / "labelsTr").iterdir())[0]

    def describe(self, shape, spacing, channels=1, labels=None):
        for case in range(self.cases):
            for channel in range(channels):
                shutil.copy(self.image, self.raw / "imagesTr" / f"case{case:02}_{channel:04}.nii.gz")
            shutil.copy(self.label, self.raw / "labelsTr" / f"case{case:02}.nii.gz")
        dataset = {
            "channel_names": {str(c): "MRI" for c in range(channels)},
            "labels": labels or {"background": 0, "first": 1, "second": 2},
            "numTraining": self.cases,
            "file_ending": ".nii.gz",
        }
        fingerprint = {
            "spacings": [spacing] * self.cases,
            "shapes_after_crop": [shape] * self.cases,
            "foreground_intensity_properties_per_channel": {str(c): INTENSITIES for c in range(channels)},
            "median_relative_size_after_cropping": 1.0,
        }
        (self.raw / "dataset.json").write_text(json.dumps(dataset))
        (self.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        return self

    def plans(self, name):
        return json.loads((self.preprocessed / f"{name}.json").read_text())
