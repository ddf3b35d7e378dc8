"""A paper's own setting, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A paper's training setting, planned instead of one that fits the memory.

    Attributes:
        configuration: Name of the nnU-Net configuration that it becomes.
        patch_size: Voxels per axis.
        arguments: The network's other arguments: stages, features, kernels, strides and further ones of the paper.
        spacing: Spacing in mm, in the order of array axes; None: the paper names none, so nnU-Net's is used.
        batch_size: Samples in a batch.
        settings: Settings of the trainers that the preset is for; see `PluginTrainer.all_network_settings`.
        source: Reference of the setting.
    """

    configuration: str
    patch_size: tuple[int, ...]
    arguments: Mapping[str, Any]
    source: str
    spacing: tuple[float, ...] | None = None
    batch_size: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_paper(cls, paper: Mapping[str, Any], configuration: str, **others: Any) -> "Preset":
        """Builds a preset from the paper's constructor arguments in `nnunet_ext.networks.NETWORKS`."""
        arguments = {k: v for k, v in paper.items() if k not in ("input_channels", "num_classes", "patch_size")}
        return cls(configuration, tuple(paper["patch_size"]), arguments, **others)
