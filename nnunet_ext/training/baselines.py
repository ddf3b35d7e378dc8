"""Trainers of the networks that papers compare with, built from MONAI's classes as they are (docs/baselines.md).

MONAI is an optional dependency: it is imported where a network is built, never with a trainer.
"""

from math import prod
from typing import Any

from torch import nn

from nnunet_ext.networks.outputs import supervise_in_evaluation, switch_deep_supervision
from nnunet_ext.networks.own import takes
from nnunet_ext.networks.topology import Topology, patch_multiples
from nnunet_ext.training.adamw import AdamWTrainer
from nnunet_ext.training.trainer import PluginTrainer


class MONAITrainer(PluginTrainer):
    """A network with MONAI's vocabulary (`spatial_dims`, `in_channels`, `out_channels`) and its published sizes.

    Subclasses name `network_class`, and set the attributes below where the class needs it.
    """

    least_patch = 1
    """Smallest size of a patch on every axis, in voxels."""
    never_used: tuple[str, ...] = ()
    """Parts of names of parameters that the class creates but never uses."""
    lower_heads: tuple[str, ...] = ()
    """Parts of names of parameters that only deep supervision uses."""
    lower_outputs_in_training_only = False
    """Whether the class returns its lower outputs in training mode alone."""

    @classmethod
    def network_arguments(cls, topology: Topology, input_channels: int, num_classes: int) -> dict[str, Any]:
        """Returns MONAI's arguments.

        Raises:
            ValueError: if the network does not work with the patch.
        """
        cls.check_patch(topology)
        return {"spatial_dims": topology.spatial_dims, "in_channels": input_channels, "out_channels": num_classes}

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        # A class that drops its lower heads without deep supervision would not load the weights that it trained.
        supervised = enable_deep_supervision or cls.lower_outputs_in_training_only
        network = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, supervised
        )
        if cls.lower_outputs_in_training_only:
            supervise_in_evaluation(network)
            switch_deep_supervision(network, enable_deep_supervision)
        # A distributed training expects a gradient for every parameter that it trains.
        idle = cls.never_used if enable_deep_supervision else (*cls.never_used, *cls.lower_heads)
        for name, parameter in network.named_parameters():
            if any(part in name for part in idle):
                parameter.requires_grad_(False)
        return network

    @classmethod
    def check_patch(cls, topology: Topology) -> None:
        """Checks that the network works with the patch.

        Raises:
            ValueError: with the axis, what the network needs and the nearest patch.
        """
        patch = topology.patch_size
        network = cls.located_network()
        strides = topology.strides if network is not None and takes(network, "strides") else None
        multiples = patch_multiples(cls.patch_multiple, topology.spatial_dims, strides)
        nearest = tuple(
            max(-(-size // m), -(-cls.least_patch // m)) * m for size, m in zip(patch, multiples, strict=True)
        )
        lowest = [size // max(m, cls.least_patch) for size, m in zip(nearest, multiples, strict=True)]
        if prod(lowest) == 1 and max(*multiples, cls.least_patch) > 1:
            # Norms have no variance over one voxel.
            nearest = (*nearest[:-1], 2 * max(multiples[-1], cls.least_patch))
        if nearest == patch:
            return
        axis = next(i for i, (size, needed) in enumerate(zip(patch, nearest, strict=True)) if size != needed)
        needs = f"a multiple of {multiples[axis]}" if multiples[axis] > 1 else f"at least {cls.least_patch}"
        raise ValueError(
            f"{cls.__name__}: `patch_size[{axis}]`={patch[axis]} of the plan must be {needs}, with more than one voxel "
            f"at the lowest level; nearest patch: {' x '.join(map(str, nearest))}; plan with "
            f"`nnunet_ext plan -tr {cls.__name__}`, or choose another patch size"
        )


class MONAIStagesTrainer(MONAITrainer):
    """A U-Net of MONAI's on the plan's stages: its widths and strides, and its largest kernel on every axis.

    The classes have one kernel size for all stages, and pool where nnU-Net's U-Net does.
    """

    @classmethod
    def network_arguments(cls, topology: Topology, input_channels: int, num_classes: int) -> dict[str, Any]:
        kernel_size = tuple(max(axis) for axis in zip(*topology.kernel_sizes, strict=True))
        return super().network_arguments(topology, input_channels, num_classes) | {
            "channels": topology.features,
            "strides": topology.strides[1:],
            "kernel_size": kernel_size,
            "up_kernel_size": kernel_size,
        }


MEDNEXT_VARIANTS: dict[str, dict[str, Any]] = {
    "S": {
        "encoder_expansion_ratio": 2,
        "decoder_expansion_ratio": 2,
        "bottleneck_expansion_ratio": 2,
        "blocks_down": (2, 2, 2, 2),
        "blocks_bottleneck": 2,
        "blocks_up": (2, 2, 2, 2),
    },
    "B": {
        "encoder_expansion_ratio": (2, 3, 4, 4),
        "decoder_expansion_ratio": (4, 4, 3, 2),
        "bottleneck_expansion_ratio": 4,
        "blocks_down": (2, 2, 2, 2),
        "blocks_bottleneck": 2,
        "blocks_up": (2, 2, 2, 2),
    },
    "M": {
        "encoder_expansion_ratio": (2, 3, 4, 4),
        "decoder_expansion_ratio": (4, 4, 3, 2),
        "bottleneck_expansion_ratio": 4,
        "blocks_down": (3, 4, 4, 4),
        "blocks_bottleneck": 4,
        "blocks_up": (4, 4, 4, 3),
    },
    "L": {
        "encoder_expansion_ratio": (3, 4, 8, 8),
        "decoder_expansion_ratio": (8, 8, 4, 3),
        "bottleneck_expansion_ratio": 8,
        "blocks_down": (3, 4, 8, 8),
        "blocks_bottleneck": 8,
        "blocks_up": (8, 8, 4, 3),
    },
}
"""The paper's Table 1; kernels of 3 and 32 channels at full resolution in each."""


class MedNeXtBaseTrainer(AdamWTrainer, MONAITrainer):
    """MedNeXt, Roy et al., MICCAI 2023, with kernels of 3; subclasses choose one of `MEDNEXT_VARIANTS`.

    Training: the paper's AdamW with 1e-3 and nnU-Net's polynomial decay; the paper names no weight decay.
    """

    network_class = "monai.networks.nets.MedNeXt"
    network_settings = {"init_filters": 32, "kernel_size": 3, "use_residual_connection": True}
    variant = "S"
    patch_multiple = 16
    lower_heads = ("out_blocks",)
    lower_outputs_in_training_only = True
    learning_rate = 1e-3
    warms_up = False

    @classmethod
    def network_arguments(cls, topology: Topology, input_channels: int, num_classes: int) -> dict[str, Any]:
        if cls.variant not in MEDNEXT_VARIANTS:
            raise ValueError(f"{cls.__name__}: unknown `variant` {cls.variant!r}; known: {', '.join(MEDNEXT_VARIANTS)}")
        return super().network_arguments(topology, input_channels, num_classes) | MEDNEXT_VARIANTS[cls.variant]
