"""Results of a cross-validation besides its trainings: an ensemble of two, and masks of unlabelled scans."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.nnunet.json_files import read_json


@dataclass(frozen=True)
class Beyond:
    """Results beside the comparison.

    Attributes:
        ensemble: Names of the ensembled models (TRAINER__PLANS__CONFIGURATION); empty without an ensemble.
        dice: nnU-Net's mean foreground Dice of the ensemble.
        predicted: Number of masks by the name of a folder of predictions.
        folders: These folders.
    """

    ensemble: tuple[str, ...] = ()
    dice: float = math.nan
    predicted: Mapping[str, int] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)


def read_beyond(ensemble: Path | None, masks: Sequence[str], ending: str) -> Beyond:
    """Reads an ensemble's evaluation and counts masks.

    Args:
        ensemble: nnU-Net's folder of an ensemble, ensemble___MODEL___MODEL___FOLDS, or None.
        masks: NAME=FOLDER.
        ending: Ending of masks.

    Raises:
        FileNotFoundError, ValueError: for folders that are missing or something else.
    """
    folders: dict[str, str] = {}
    for text in masks:
        name, separator, folder = text.partition("=")
        if not separator or not Path(folder).is_dir():
            raise ValueError(f"--masks {text} must be NAME=FOLDER, an existing folder of masks")
        folders[name] = folder
    counted = {name: len(list(Path(folder).glob(f"*{ending}"))) for name, folder in folders.items()}
    if ensemble is None:
        return Beyond(predicted=counted, folders=folders)
    from nnunetv2.utilities.file_path_utilities import (
        convert_ensemble_folder_to_model_identifiers_and_folds as parts_of,
    )

    models = parts_of(ensemble.name)[0] if ensemble.name.startswith("ensemble___") else []
    if not models:
        raise ValueError(f"--ensemble {ensemble} must be a folder that nnU-Net named ensemble___MODEL___MODEL___FOLDS")
    summary = read_json(ensemble / "summary.json")
    return Beyond(tuple(models), float(summary["foreground_mean"]["Dice"]), counted, folders)
