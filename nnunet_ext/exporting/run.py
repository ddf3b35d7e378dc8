"""`nnunet_ext export`: a trained network as a file of another format, compared with the original."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_ext.exporting import formats
from nnunet_ext.exporting.description import describe
from nnunet_ext.exporting.formats import FORMATS, ExportError
from nnunet_ext.exporting.parity import Parity, compare
from nnunet_ext.exporting.tiles import find_tiles
from nnunet_ext.nnunet.trained_model import DEFAULT_CHECKPOINT, load_predictor, trained_folds
from nnunet_ext.utils.files import check_writable, named_errors, remove, replacing
from nnunet_ext.utils.torch_private import uncompiled

DEFAULT_TILES = 6


@dataclass(frozen=True)
class Exported:
    """An export that was written and agrees with the original.

    Attributes:
        file: The network.
        description: Its description, FILE.json.
        network: Name of the network's class.
        parity: Comparison with the original.
    """

    file: Path
    description: Path
    network: str
    parity: Parity


def run(
    model: Path,
    format_name: str,
    file: Path,
    *,
    fold: str | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    scans: Path | None = None,
    tiles: int = DEFAULT_TILES,
) -> Exported:
    """Exports a fold of a trained model for tiles of the plan's patch size, in batches of any size.

    The file appears only after it has given the original's logits.

    Args:
        model: Folder TRAINER__PLANS__CONFIGURATION.
        format_name: A name in `FORMATS`.
        file: File to write; the description is FILE.json.
        fold: Fold to export; None: the only one.
        checkpoint: Name of the checkpoint in the fold's folder.
        scans: Folder of scans to compare on; None: the preprocessed dataset, else a random tile.
        tiles: Number of tiles to compare on.

    Raises:
        FileNotFoundError: if the folder is no trained model.
        ValueError: for a missing package, several folds, or wrong arguments.
        ExportError: if the format does not support the network, or if the file gives other logits.
    """
    if tiles < 1:
        raise ValueError(f"--tiles {tiles} must be at least 1")
    chosen = FORMATS[format_name]
    formats.check_packages(chosen)
    fold = fold or _only_fold(model, checkpoint)
    check_writable(file.parent)
    predictor = load_predictor(model, "cpu", [fold], checkpoint, allow_tqdm=False)
    network = _network(predictor)
    channels = _input_channels(predictor)
    found = find_tiles(predictor, fold, scans, tiles, channels)
    partial = file.with_name(f"{file.name}.partial")
    try:
        with named_errors(file):
            facts = formats.write(chosen, network, found.tiles[0][None], partial)
        parity = compare(
            network,
            formats.load(chosen, partial),
            found.tiles,
            source=found.source,
            regions=bool(predictor.label_manager.has_regions),
        )
        if not parity.passed:
            raise ExportError(_difference(network, chosen.name, parity))
        described = describe(predictor, chosen, model / f"fold_{fold}" / checkpoint, channels) | facts
        described["parity"] = parity.as_dict()
        description = file.with_name(f"{file.name}.json")
        with replacing(description, "w") as written:
            written.write(json.dumps(described, indent=2) + "\n")
        partial.replace(file)
    finally:
        remove(partial)
    return Exported(file, description, type(network).__name__, parity)


def _only_fold(model: Path, checkpoint: str) -> str:
    folds = trained_folds(model, None, checkpoint)
    if len(folds) > 1:
        raise ValueError(f"{model} has the folds {', '.join(folds)}; a file holds one network: choose one with -f")
    return folds[0]


def _network(predictor: Any) -> nn.Module:
    network = uncompiled(predictor.network)
    network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network = network
    return network.cpu().float().eval()


def _input_channels(predictor: Any) -> int:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

    return determine_num_input_channels(
        predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )


def _difference(network: nn.Module, format_name: str, parity: Parity) -> str:
    worst = parity.worst
    return (
        f"{type(network).__name__} as {format_name} differs from the original: logits by {worst.max_difference:.2g}, "
        f"{worst.relative_difference:.2g} of the largest (allowed: {parity.tolerance:.2g}), and {worst.changed} voxels "
        f"have another label, on tiles of {parity.source}. No file was written"
    )
