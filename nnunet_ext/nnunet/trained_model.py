"""Trained models in nnU-Net's results folder: TRAINER__PLANS__CONFIGURATION, with a folder for each fold."""

import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.nnunet.checkpoints import FINAL_CHECKPOINT, differences, read_checkpoint
from nnunet_ext.nnunet.dataset_json import read_dataset_json, require
from nnunet_ext.nnunet.json_files import read_plans
from nnunet_ext.nnunet.trainers import register_trainers
from nnunet_ext.utils.torch_private import uncompiled

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

DEFAULT_CHECKPOINT = FINAL_CHECKPOINT
_SEPARATOR = "__"
_FOLD = re.compile(r"fold_(\d+|all)")


def model_name(*parts: str) -> str:
    """Joins trainer, plans and configuration as nnU-Net names the folder of a model."""
    return _SEPARATOR.join(parts)


def split_model_name(name: str) -> list[str]:
    """Splits the name of a model's folder into trainer, plans and configuration, as far as it has them."""
    return name.split(_SEPARATOR)


def repeat_plans(plans: str, repeat: int) -> str:
    """Name of the plans of a repeated training; the first repeat keeps the plain name."""
    return plans if repeat == 1 else f"{plans}_repeat{repeat}"


def default_plans(trainer: str) -> str:
    """Name under which `nnunet_ext plan` writes the plans of a trainer.

    It is nnUNetSASANPlans for both SASANTrainer and SASANTrainerDiceCE, which train one network on one plan.
    """
    return f"nnUNet{trainer.split('Trainer')[0].removeprefix('nnUNet') or 'Traced'}Plans"


def fold_names(model: Path) -> list[str]:
    """Folds of a model's folder: 0, 1, ... or all. A folder of another name is a fold that somebody has put aside."""
    found = (_FOLD.fullmatch(path.name) for path in model.glob("fold_*"))
    return sorted((match[1] for match in found if match), key=lambda name: (len(name), name))


def pair_plans(trainers: Sequence[str], plans: Sequence[str]) -> list[tuple[str, str]]:
    """Trainers with their plans.

    Args:
        trainers: Names.
        plans: One name for all trainers, or one for each.

    Raises:
        ValueError: for another number of plans.
    """
    if len(plans) not in (1, len(trainers)):
        raise ValueError(f"-p has {len(plans)} names for {len(trainers)} trainers; give one for all or one for each")
    several = list(plans) if len(plans) > 1 else [plans[0]] * len(trainers)
    return list(zip(trainers, several, strict=True))


def trained_folds(folder: Path, wanted: Sequence[int | str] | None, checkpoint: str = DEFAULT_CHECKPOINT) -> list[str]:
    """The folds to load: those requested, else all folds of a cross-validation, else the model of all cases.

    Raises:
        FileNotFoundError: unless the folder holds a trained model with them.
    """
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is not a folder of a trained model (TRAINER__PLANS__CONFIGURATION): no {name}"
                f"{_others(folder)}"
            )
    trained = [fold for fold in fold_names(folder) if (folder / f"fold_{fold}" / checkpoint).is_file()]
    # As in nnU-Net: the folds of a cross-validation without the model of all cases.
    folds = [str(fold) for fold in wanted] if wanted else [fold for fold in trained if fold != "all"] or trained
    missing = [fold for fold in folds if fold not in trained]
    if missing or not folds:
        raise FileNotFoundError(
            f"{folder} has no {checkpoint} of fold {missing[0] if missing else '0, 1, ..'}; "
            f"it has {', '.join(trained) or 'none'}"
        )
    return folds


def _others(folder: Path) -> str:
    """The models beside a folder, as the end of a sentence."""
    there = sorted(path.parent.name for path in folder.parent.glob(f"*{_SEPARATOR}*/plans.json"))
    return f"; models in {folder.parent}: {', '.join(there)}" if there else f"; {folder.parent} has no models"


def load_predictor(
    folder: str | Path,
    device: str,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    **options: Any,
) -> "nnUNetPredictor":
    """nnU-Net's predictor with a trained model.

    Args:
        folder: ``TRAINER__PLANS__CONFIGURATION`` of nnU-Net's results, or an installed model.
        device: Name of torch's device.
        folds: Folds to load; None: all trained ones.
        checkpoint: Name of the checkpoint in the folders of the folds.
        **options: Options of nnUNetPredictor.

    Raises:
        FileNotFoundError: if the folder is no trained model.
        ValueError: for a damaged or foreign checkpoint, or one of another plan, with the file and the differences; and
            for plans.json or dataset.json that nnU-Net cannot use, with the file and the key.
    """
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = Path(folder)
    found = trained_folds(folder, folds, checkpoint)
    files = [folder / f"fold_{fold}" / checkpoint for fold in found]
    # These two as well: nnU-Net's errors name neither the file nor the key.
    plans, dataset = read_plans(folder / "plans.json"), read_dataset_json(folder / "dataset.json")
    if "modality" not in dataset:  # nnU-Net takes the name of version 1 too
        require(folder / "dataset.json", dataset, "channel_names")
    # Here rather than by nnU-Net's loader, whose errors do not name the file.
    inits = [read_checkpoint(file)["init_args"] for file in files]
    register_trainers()
    with redirect_stdout(StringIO()):
        predictor = nnUNetPredictor(device=torch.device(device), **options)
        try:
            predictor.initialize_from_trained_model_folder(str(folder), found, checkpoint)
        except (ValueError, RuntimeError) as error:
            raise _misfit(plans, dataset, files[0], inits[0], error) from error
    network = uncompiled(predictor.network)
    for file, init, weights in list(zip(files, inits, predictor.list_of_parameters, strict=True))[1:]:
        try:
            network.load_state_dict(weights)
        except (ValueError, RuntimeError) as error:
            raise _misfit(plans, dataset, file, init, error) from error
    return predictor


def _misfit(
    plans: dict[str, Any], dataset: dict[str, Any], file: Path, init: dict[str, Any], error: Exception
) -> ValueError:
    try:
        ours = {"plans": plans, "dataset_json": dataset, "configuration": init["configuration"]}
        others = f": {'; '.join(differences(init, ours))}"
    except (KeyError, ValueError, RuntimeError):  # plans.json has no such configuration, for instance
        others = ""
    return ValueError(f"{file} does not fit plans.json and dataset.json of its model's folder{others} ({error})")
