"""Description of an exported network: what a runtime needs beside the file, as JSON."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import nnunet_ext
from nnunet_ext.exporting.formats import INPUT, OUTPUT, Format
from nnunet_ext.nnunet.checkpoints import read_checkpoint
from nnunet_ext.utils.files import sha256_of
from nnunet_ext.utils.safe_load import without_numpy

SCHEMA = 1
"""Number of the description's layout; it changes when a key changes its meaning or leaves."""


def describe(predictor: Any, chosen: Format, checkpoint: Path, input_channels: int) -> dict[str, Any]:
    """All that the model's own files say; the caller adds the format's facts and the comparison.

    Args:
        predictor: nnU-Net's predictor with the model.
        chosen: The format.
        checkpoint: File of the weights.
        input_channels: M.
    """
    plans, configuration, labels = predictor.plans_manager, predictor.configuration_manager, predictor.label_manager
    patch = [int(size) for size in configuration.patch_size]
    classes = labels.num_segmentation_heads
    dataset = predictor.dataset_json
    return {
        "schema": SCHEMA,
        "format": chosen.name,
        "runtime": chosen.runtime,
        "network": type(predictor.network).__name__,
        "trainer": predictor.trainer_name,
        "plans": plans.plans_name,
        "configuration": read_checkpoint(checkpoint)["init_args"]["configuration"],
        "dataset": plans.dataset_name,
        "input": {"name": INPUT, "type": "float32", "shape": ["batch", input_channels, *patch]},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", classes, *patch]},
        "patch_size": patch,
        "spacing_mm": [float(spacing) for spacing in configuration.spacing],
        "transpose_forward": list(plans.transpose_forward),
        "channels": dataset.get("channel_names") or dataset.get("modality"),
        "normalisation": _normalisation(plans, configuration),
        "previous_stage": configuration.previous_stage_name,
        "num_classes": classes,
        "labels": dataset["labels"],
        "regions": bool(labels.has_regions),
        "regions_class_order": dataset.get("regions_class_order"),
        "ignore_label": labels.ignore_label,
        "mirror_axes": list(predictor.allowed_mirroring_axes or ()),
        "checkpoint": {"fold": checkpoint.parent.name.removeprefix("fold_"), "file": checkpoint.name}
        | {"sha256": sha256_of(checkpoint)},
        "versions": _versions(chosen),
    }


def _normalisation(plans: Any, configuration: Any) -> list[dict[str, Any]]:
    """nnU-Net's scheme for each channel, with the intensities of the training data that some of them use."""
    properties = plans.foreground_intensity_properties_per_channel
    schemes = zip(configuration.normalization_schemes, configuration.use_mask_for_norm, strict=True)
    return [
        {
            "scheme": scheme,
            "use_mask": bool(mask),
            "intensities": without_numpy(properties.get(str(channel), {})),
        }
        for channel, (scheme, mask) in enumerate(schemes)
    ]


def _versions(chosen: Format) -> dict[str, str]:
    names = ("nnunetv2", *chosen.packages)
    found = {"nnunet_ext": nnunet_ext.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in names}
