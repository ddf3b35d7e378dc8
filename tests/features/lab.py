"""Trainings and predictions by nnU-Net's commands, each run once and shared by all cells that need it."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from tests.features.forked import Forks
from tests.features.workspaces import FeatureWorkspace

BUDGET = {
    "NNUNET_EXT_EPOCHS": "1",
    "NNUNET_EXT_ITERATIONS": "2",
    "NNUNET_EXT_VAL_ITERATIONS": "1",
    "nnUNet_n_proc_DA": "0",  # workers prepare many more batches than are used
}
ON_CPU = ("-device", "cpu")
PREDICT_ON_CPU = (*ON_CPU, "-npp", "1", "-nps", "1")
TINY = "3d_fullres_tiny"


class Lab:
    """nnU-Net's folders with all kinds of datasets, with patches of a multiple; every method caches its results."""

    def __init__(self, root: Path, forks: Forks | None, multiple: int = 1) -> None:
        self.root, self.forks, self.multiple = root, forks, multiple
        # Caches belong to the object, so that labs share nothing.
        self.space, self.cascade_space = cache(self._space), cache(self._cascade_space)
        self._trained, self._predicted = cache(self._train), cache(self._predict)

    def _space(self, kind: str) -> FeatureWorkspace:
        return FeatureWorkspace(self.root, kind, self.forks, self.multiple)

    def _cascade_space(self) -> FeatureWorkspace:
        space = self.space("plain")
        space.add_cascade()
        return space

    def train(self, trainer: str, kind: str = "plain", configuration: str = TINY, fold: str = "0") -> Path:
        """Trains with --npz and returns the folder of the fold, its checkpoint, losses and metrics checked."""
        return self._trained(trainer, kind, configuration, fold)

    def _train(self, trainer: str, kind: str, configuration: str, fold: str) -> Path:
        space = self.space(kind)
        self.command_train(space, trainer, configuration, fold, "--npz")
        folder = space.model(trainer, configuration).with_name(f"fold_{fold}")
        check_training(folder)
        return folder

    def command_train(
        self, space: FeatureWorkspace, trainer: str, configuration: str, fold: str, *options: str, **environment: str
    ) -> str:
        arguments = (str(space.dataset_id), configuration, fold, "-tr", trainer, *ON_CPU, *options)
        return space.run("nnUNetv2_train", *arguments, **(BUDGET | environment))

    def predict(
        self,
        trainer: str,
        kind: str = "plain",
        configuration: str = TINY,
        fold: str = "0",
        options: tuple[str, ...] = (),
    ) -> Path:
        """Predicts the scans of `imagesTs` with probabilities; masks have valid labels and the image's geometry."""
        return self._predicted(trainer, kind, configuration, fold, options)

    def _predict(self, trainer: str, kind: str, configuration: str, fold: str, options: tuple[str, ...]) -> Path:
        self.train(trainer, kind, configuration, fold)
        space = self.space(kind)
        target = self.root / "predictions" / "_".join((trainer, kind, configuration, fold, *options))
        self.command_predict(space, trainer, configuration, fold, space.raw / "imagesTs", target, *options)
        check_masks(space, target)
        return target

    def command_predict(
        self,
        space: FeatureWorkspace,
        trainer: str,
        configuration: str,
        fold: str,
        source: Path,
        target: Path,
        *options: str,
        **environment: str,
    ) -> None:
        space.run(
            "nnUNetv2_predict",
            *("-i", str(source), "-o", str(target), "-d", str(space.dataset_id), "-c", configuration, "-f", fold),
            *("-tr", trainer, *PREDICT_ON_CPU, "--save_probabilities", *options),
            **environment,
        )

    def elsewhere(self, name: str, *names: str) -> dict[str, str]:
        """Empty folders for nnU-Net: variables of the environment, all three or those named."""
        names = names or ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        folders = {variable: self.root / "elsewhere" / name / variable for variable in names}
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return {variable: str(folder) for variable, folder in folders.items()}


def check_training(folder: Path, epochs: int = 1) -> dict:
    """The last checkpoint of a training: of the expected epoch, all losses and weights finite, all cases validated."""
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["current_epoch"] == epochs
    logged = checkpoint["logging"]
    assert len(logged["train_losses"]) == len(logged["val_losses"]) == epochs
    assert np.isfinite([*logged["train_losses"], *logged["val_losses"]]).all()
    assert all(value.isfinite().all() for value in checkpoint["network_weights"].values())
    assert (folder / "validation" / "summary.json").is_file()
    return checkpoint


def check_masks(space: FeatureWorkspace, folder: Path) -> None:
    """Checks one mask per scan, with its size and valid labels, and probabilities of every output."""
    labels, probabilities_sum_to_1 = predictable(space)
    ending = space.dataset_json["file_ending"]
    assert len(list(folder.glob(f"*{ending}"))) == len(space.scans) > 0
    for scan in space.scans:
        name = scan.name.split("_0000")[0]
        found, values = read_mask(folder / f"{name}{ending}"), probabilities(folder, name)
        assert found.shape == values.shape[1:] == read_scan(scan).shape
        assert set(np.unique(found)) <= {0, *labels}
        assert len(values) == (len(labels) + 1 if probabilities_sum_to_1 else len(labels))
        assert (values >= 0).all()
        assert (values <= 1).all()
        if probabilities_sum_to_1:
            assert np.allclose(values.sum(0), 1, atol=1e-2)  # nnU-Net keeps them in half precision
            assert (found == values.argmax(0)).mean() > 0.99


def predictable(space: FeatureWorkspace) -> tuple[list[int], bool]:
    """Labels besides background, and whether they exclude each other."""
    dataset = space.dataset_json
    if "regions_class_order" in dataset:
        return dataset["regions_class_order"], False
    return [label for name, label in dataset["labels"].items() if name not in ("background", "ignore")], True


def probabilities(folder: Path, name: str) -> np.ndarray:
    """(K, *axes) of a case."""
    with np.load(folder / f"{name}.npz") as content:
        return content["probabilities"].astype(np.float32)


def read_mask(file: Path) -> np.ndarray:
    """A mask with the axes of its probabilities."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    return array[None] if file.suffix == ".png" else array


def read_scan(file: Path) -> np.ndarray:
    """The first channel of an image with the axes of its mask."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    return array[None, ..., 0] if file.suffix == ".png" else array


def only_scan(space: FeatureWorkspace) -> tuple[Path, str]:
    """The one image to predict, and the name of its case."""
    (scan,) = space.scans
    return scan, scan.name.split("_0000")[0]
