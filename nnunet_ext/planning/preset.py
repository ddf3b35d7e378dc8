"""A paper's own setting, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """What a paper trained with, in the place of what fits the memory.

    Attributes:
        configuration: The configuration of nnU-Net that it becomes.
        patch_size: Voxels per axis.
        arguments: The network's other arguments: stages, features, kernels, strides and what else the paper has.
        spacing: In mm, in the order of array axes; None: the paper names none, nnU-Net's is taken.
        batch_size: Samples in a batch.
        settings: Of the trainers that it is for; see `PluginTrainer.all_network_settings`.
        source: Where it says so.
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
        """From the constructor's arguments that `nnunet_ext.networks.NETWORKS` has of the paper."""
        arguments = {k: v for k, v in paper.items() if k not in ("input_channels", "num_classes", "patch_size")}
        return cls(configuration, tuple(paper["patch_size"]), arguments, **others)
