"""Trainers of libraries' networks, and sizes at which their networks are quick to test."""

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.networks.topology import Topology
from nnunet_ext.planning.architecture import unet_architecture
from nnunet_ext.planning.fitting import Candidate, plans_of

SMALL = {
    "MONAIUNetTrainer": {},
    "MONAIResUNetTrainer": {},
    "MONAIAttentionUNetTrainer": {},
    "MONAIUNetPlusPlusTrainer": {"features": (4, 4, 4, 4, 8, 4)},
    "MONAIVNetTrainer": {},
    "MONAISegResNetTrainer": {"init_filters": 8},
    "MONAIHighResNetTrainer": {},
    "UNETRTrainer": {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "feature_size": 4},
    "SwinUNETRTrainer": {"feature_size": 12},
    "MedNeXtTrainer": {"init_filters": 4},
    "MedNeXtBTrainer": {"init_filters": 2},
    "MedNeXtMTrainer": {"init_filters": 2},
    "MedNeXtLTrainer": {"init_filters": 2},
}
"""The trainers, and arguments of a smaller network for each."""
ON_A_LIBRARYS_BACKBONE = ("LSTMSAUNetPlusPlusTrainer",)
OTHER_PATCHES = (*SMALL, *ON_A_LIBRARYS_BACKBONE)
"""Trainers whose networks do not take the patches of the tests of all trainers, or take long to build."""
PATCHES = {"2D": (32, 32), "3D": (32, 32, 32), "anisotropic": (16, 32, 32)}
SWIN_PATCHES = {"2D": (64, 32), "3D": (64, 32, 32), "anisotropic": (32, 64, 32)}
DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
CLASSES = 3


def patch_of(name: str, case: str) -> tuple[int, ...]:
    return (SWIN_PATCHES if name == "SwinUNETRTrainer" else PATCHES)[case]


def plans_for(patch: tuple[int, ...], strides=None, kernel=3) -> dict:
    """nnU-Net's plans of a small U-Net; in 3D, patches that are thin along the first axis are pooled there less."""
    axes = len(patch)
    thin = axes == 3 and patch[0] < patch[-1]
    strides = strides or [(1,) * axes, (1, 2, 2) if thin else (2,) * axes, (2,) * axes]
    topology = Topology.create(
        conv_op=nn.Conv2d if axes == 2 else nn.Conv3d,
        patch_size=patch,
        n_stages=len(strides),
        features_per_stage=[4 + 2 * stage for stage in range(len(strides))],
        kernel_sizes=kernel,
        strides=strides,
        divisible=False,
    )
    return plans_of(Candidate(unet_architecture(topology), patch), batch_size=2)


def build(trainer, patch: tuple[int, ...], deep_supervision: bool = True, channels: int = 1, **plans) -> nn.Module:
    """The network that a trainer's class builds from a plan with this patch."""
    manager = PlansManager(plans_for(patch, **plans))
    return trainer.build_network_architecture(
        manager, manager.get_configuration("traced"), channels, CLASSES, deep_supervision
    )


def outputs_of(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = network(x)
    return list(y) if isinstance(y, (list, tuple)) else [y]
