"""A results folder in nnU-Net's form, with real labels, and predictions that differ from them in a known way."""

import json
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from scipy import ndimage

from nnunet_ext.cli.main import main

DATASET = "Dataset004_Hippocampus"
CONFIGURATION = "3d_fullres"
LABELS = [1, 2]
LOG_EPOCH = """\
2026-01-01 10:00:{s:02}.000000: Epoch {epoch}
2026-01-01 10:00:{s:02}.100000: Current learning rate: 0.01
2026-01-01 10:00:{s:02}.200000: Peak memory: {memory:.2f} GB
2026-01-01 10:00:{s:02}.300000: train_loss {loss:.4f}
2026-01-01 10:00:{s:02}.400000: val_loss {loss:.4f}
2026-01-01 10:00:{s:02}.500000: Pseudo dice [np.float32({dice}), np.float32(nan)]
2026-01-01 10:00:{s:02}.600000: Epoch time: {seconds} s
"""


def changed(mask, strength, generator):
    """Wrong labels in a share of the voxels at the border, the share growing with `strength`."""
    border = ndimage.binary_dilation(mask > 0) & ~ndimage.binary_erosion(mask > 0)
    flip = border & (generator.random(mask.shape) < strength)
    other = ndimage.grey_dilation(mask, size=3)
    return np.where(flip, np.where(mask > 0, 0, other), mask).astype(mask.dtype)


class Results:
    """nnU-Net's three folders; `train` adds the validation of a trainer."""

    def __init__(self, root: Path, cases: int = 12, folds: int = 2) -> None:
        self.root = root
        self.raw, self.preprocessed, self.results = (
            root / f"nnUNet_{name}" / DATASET for name in ("raw", "preprocessed", "results")
        )
        source = Path(str(resources.files("nnunet_ext") / "data" / "hippocampus"))
        self.cases = sorted(file.name.removesuffix(".nii.gz") for file in (source / "labelsTr").iterdir())[:cases]
        self.dataset = json.loads((source / "dataset.json").read_text())
        for folder in (self.raw / "imagesTr", self.preprocessed / "gt_segmentations", self.results):
            folder.mkdir(parents=True)
        for case in self.cases:
            shutil.copy(source / "imagesTr" / f"{case}_0000.nii.gz", self.raw / "imagesTr")
            shutil.copy(source / "labelsTr" / f"{case}.nii.gz", self.preprocessed / "gt_segmentations")
        (self.preprocessed / "dataset.json").write_text(json.dumps(self.dataset))
        self.splits = [
            {"train": [c for i, c in enumerate(self.cases) if i % folds != k], "val": self.cases[k::folds]}
            for k in range(folds)
        ]
        (self.preprocessed / "splits_final.json").write_text(json.dumps(self.splits))

    @property
    def environment(self) -> dict[str, str]:
        return {name: str(self.root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}

    def truth(self, case: str) -> Path:
        return self.preprocessed / "gt_segmentations" / f"{case}.nii.gz"

    def model(self, trainer: str) -> Path:
        return self.results / f"{trainer}__nnUNetPlans__{CONFIGURATION}"

    def train(self, trainer: str, strength: float, seed: int = 0, seconds: float = 2.0) -> None:
        """Predictions with `strength` of the border wrong, nnU-Net's evaluation of them, a log of three epochs."""
        generator = np.random.default_rng(seed)
        model = self.model(trainer)
        for fold, split in enumerate(self.splits):
            validation = model / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            for case in split["val"]:
                image = sitk.ReadImage(str(self.truth(case)))
                mask = changed(sitk.GetArrayFromImage(image), strength * generator.uniform(0.5, 1.5), generator)
                prediction = sitk.GetImageFromArray(mask)
                prediction.CopyInformation(image)
                sitk.WriteImage(prediction, str(validation / f"{case}.nii.gz"))
            self.evaluate(trainer, fold)
            epochs = "".join(
                LOG_EPOCH.format(
                    s=10 * epoch,
                    epoch=epoch,
                    memory=1 + epoch / 10,
                    loss=-0.1 * epoch,
                    dice=0.2 * epoch,
                    seconds=seconds,
                )
                for epoch in range(3)
            )
            scans = "".join(f"2026-01-01 10:01:{i:02}.500000: predicting {c}\n" for i, c in enumerate(split["val"]))
            log = f"2026-01-01 10:00:00.000000: nnunet_ext 0.1.0, {trainer}: 3 epochs, 20 training and 2 validation "
            log += f"iterations per epoch\n{epochs}{scans}2026-01-01 10:02:00.000000: Validation complete\n"
            (validation.parent / "training_log_2026_1_1_10_00_00.txt").write_text(log)
        (model / "dataset.json").write_text(json.dumps(self.dataset))
        shutil.copy(Path(__file__).parent / "plans.json", model / "plans.json")

    def evaluate(self, trainer: str, fold: int) -> None:
        """nnU-Net's evaluation of a fold, with nnU-Net's code but without its processes."""
        validation = self.model(trainer) / f"fold_{fold}" / "validation"
        cases = []
        for file in sorted(validation.glob("*.nii.gz")):
            truth = self.truth(file.name.removesuffix(".nii.gz"))
            cases.append(compute_metrics(str(truth), str(file), SimpleITKIO(), LABELS))
            recursive_fix_for_json_export(cases[-1])
        mean = {
            label: {"Dice": float(np.nanmean([case["metrics"][label]["Dice"] for case in cases]))} for label in LABELS
        }
        summary = {"metric_per_case": cases, "mean": mean, "foreground_mean": {}}
        save_summary_json(summary, str(validation / "summary.json"))


TRAINERS = {"nnUNetTrainer": 0.4, "SASANTrainer": 0.1, "EMNetTrainer": 0.4}


@pytest.fixture(scope="session")
def made_results(tmp_path_factory):
    """Three trainers on two folds, read only: SASANTrainer is better than nnUNetTrainer, EMNetTrainer equally good."""
    results = Results(tmp_path_factory.mktemp("results"))
    for seed, (trainer, strength) in enumerate(TRAINERS.items()):
        results.train(trainer, strength, seed, seconds=2.0 + seed)
    return results


@pytest.fixture
def results(made_results, tmp_path, monkeypatch):
    """A copy of them that a test may change, as nnU-Net's folders of this process."""
    shutil.copytree(made_results.root, tmp_path / "folders")
    copy = object.__new__(Results)
    copy.__dict__ |= made_results.__dict__
    copy.root = tmp_path / "folders"
    copy.raw, copy.preprocessed, copy.results = (
        copy.root / f"nnUNet_{name}" / DATASET for name in ("raw", "preprocessed", "results")
    )
    for name, value in copy.environment.items():
        monkeypatch.setenv(name, value)
    return copy


@pytest.fixture(scope="session")
def report(made_results, tmp_path_factory):
    """A report of the three trainers, by the command."""
    output = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made_results.environment.items():
            patch.setenv(name, value)
        patch.delenv("nnUNet_extTrainer", raising=False)
        assert main(["compare", "-d", "4", "-tr", *TRAINERS, "-np", "1", "-o", str(output)]) == 0
    return output


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium, driven by selenium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, path in found.items():
        if path is None:
            pytest.skip(f"needs {name}: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found["chromium"]
    # Only pages of our own are opened; root, as in containers, cannot have Chromium's sandbox.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture
def open_page(browser):
    """Opens a report at a width and in a theme, and checks that it makes no request and logs no error."""

    def open_it(path: Path, width: int = 1280, scheme: str = "light"):
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        browser.get(path.resolve().as_uri())
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert [url for url in asked if not url.startswith("data:")] == [path.resolve().as_uri()]
        assert browser.get_log("browser") == []
        return browser

    return open_it
