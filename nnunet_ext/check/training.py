"""A tiny, real training of a trainer on shipped scans: training, resumption, validation and prediction."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from nnunet_ext.planning.planner import TracedPlanner

_NUMBER, _DATASET, _PLANS, _CASES = 4, "Dataset004_Hippocampus", "nnUNetCheckPlans", 6
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
STAGES = ("plan", "training", "resumption", "validation", "prediction")
_SECONDS = 1800
# nnU-Net reads its folders from the environment when it is imported: hence a process of its own.
_ALL_STAGES = """
import sys
from nnunet_ext.check.training import all_stages
from nnunet_ext.plans import planner_for
all_stages(*sys.argv[1:], planner_for)
"""


def run_training(trainer: str, device: str) -> tuple[str | None, str]:
    """Runs all stages in a process of their own, in a folder that is deleted afterwards.

    Args:
        trainer: Name of the trainer.
        device: Type of the device.

    Returns:
        The stage that failed and the last line that it printed; None and an empty text if all went well.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {name: str(Path(folder, name)) for name in _FOLDERS}
        environment |= {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "MPLBACKEND": "Agg"}
        for name in _FOLDERS:
            Path(folder, name).mkdir()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ALL_STAGES, trainer, device],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    if done.returncode == 0:
        return None, ""
    finished = sum(line == f"finished: {stage}" for stage in STAGES for line in done.stdout.splitlines())
    return STAGES[min(finished, len(STAGES) - 1)], (done.stderr.strip().splitlines() or ["no message"])[-1]


def all_stages(trainer: str, device: str, planner_for: "Callable[[type], type[TracedPlanner]]") -> None:
    """All stages, each announced when it has finished.

    Args:
        trainer: Name of the trainer.
        device: Type of the device.
        planner_for: As for `nnunet_ext.planning.run.run`.
    """
    from nnunetv2.paths import nnUNet_raw

    _lay_out(Path(nnUNet_raw, _DATASET))
    _plan(trainer, planner_for)
    print("finished: plan")
    first = _trainer(trainer, device, epochs=1)
    first.run_training()
    if not np.isfinite(first.logger.get_value("train_losses", step=-1)):
        raise ValueError("the loss of the first epoch is not finite")
    print("finished: training")
    second = _trainer(trainer, device, epochs=2)
    second.load_checkpoint(str(Path(second.output_folder, "checkpoint_final.pth")))
    if second.current_epoch != 1:
        raise ValueError(f"the resumed training begins in epoch {second.current_epoch} instead of 1")
    second.run_training()
    print("finished: resumption")
    second.perform_actual_validation()
    print("finished: validation")
    _predict(Path(second.output_folder_base), device)
    print("finished: prediction")


def _lay_out(raw: Path) -> None:
    """A raw dataset of some shipped scans, every second voxel of each axis."""
    import SimpleITK as sitk

    shipped = Path(str(resources.files("nnunet_ext") / "data" / "hippocampus"))
    names = sorted(file.name.removesuffix(".nii.gz") for file in (shipped / "labelsTr").iterdir())[:_CASES]
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (raw / part).mkdir(parents=True)
        for name in names:
            image = sitk.ReadImage(str(shipped / part / f"{name}{ending}"))
            sitk.WriteImage(image[::2, ::2, ::2], str(raw / part / f"{name}{ending}"))
    content = json.loads((shipped / "dataset.json").read_text()) | {"numTraining": len(names)}
    (raw / "dataset.json").write_text(json.dumps(content))


def _plan(trainer: str, planner_for: "Callable[[type], type[TracedPlanner]]") -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    from nnunet_ext.planning import run as planning

    for configuration in ("3d_fullres", "2d"):
        try:
            planning.run(str(_NUMBER), trainer, planner_for, plans_name=_PLANS, configurations=[configuration])
            break
        except ValueError:
            if configuration == "2d":
                raise
    preprocess_dataset(_NUMBER, _PLANS, (configuration,), (1,))


def _trainer(name: str, device: str, epochs: int) -> Any:
    from nnunetv2.paths import nnUNet_preprocessed

    from nnunet_ext.nnunet.trainers import find_trainer

    folder = Path(nnUNet_preprocessed, _DATASET)
    plans = json.loads((folder / f"{_PLANS}.json").read_text()) | {"continue_training": False}
    dataset = json.loads((folder / "dataset.json").read_text())
    (configuration,) = plans["configurations"]
    trainer: Any = find_trainer(name)(plans, configuration, 0, dataset, torch.device(device))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 2, 1
    trainer.initialize()
    return trainer


def _predict(model: Path, device: str) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.paths import nnUNet_raw

    from nnunet_ext.nnunet.trained_model import load_predictor

    scan = sorted(Path(nnUNet_raw, _DATASET, "imagesTr").iterdir())[0]
    predictor = load_predictor(model, device, folds=[0], allow_tqdm=False, use_mirroring=False)
    image, properties = SimpleITKIO().read_images([str(scan)])
    labels = predictor.predict_single_npy_array(image, properties, None, None, False)
    if labels.shape != image.shape[1:]:
        raise ValueError(f"the prediction has the shape {labels.shape}, the scan {image.shape[1:]}")
