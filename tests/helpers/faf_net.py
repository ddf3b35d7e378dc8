"""Small FAF-Nets, and supports and images for them."""

import torch
from torch import nn

from nnunet_ext.networks import FAFNet
from nnunet_ext.supervoxels import SupervoxelParameters
from nnunet_ext.supervoxels.preparation import make_supervoxels
from nnunet_ext.weights import from_authors

SMALL = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (32, 24),
    "n_stages": 4,
    "features_per_stage": (4, 6, 8, 10),
    "conv_op": nn.Conv2d,
    "kernel_sizes": 3,
    "strides": 2,
    "encoder": "plan",
    "feature_channels": 12,
}


CASES = {
    "2d": {},
    "3d": {"conv_op": nn.Conv3d, "patch_size": (8, 32, 24)},
    "anisotropic": {
        "conv_op": nn.Conv3d,
        "patch_size": (5, 24, 32),
        "strides": [(1, 1, 1), (1, 2, 2), (1, 2, 1), (1, 2, 2)],
        "kernel_sizes": [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)],
    },
    "resnet18": {"encoder": "resnet18"},
}


def build(case="2d", support=True, **arguments):
    network = FAFNet(**(SMALL | CASES[case] | arguments))
    if support:
        classes = network.num_classes - (not arguments.get("regions", False))
        network.set_support(*support_set(classes, network.input_channels))
    return network


def support_set(classes=2, channels=1, size=(32, 24), shots=3):
    """Slices and disjoint squares; the first class is in every slice, the last in the last slice alone."""
    masks = torch.zeros(shots, classes, *size)
    for c in range(classes):
        first = 0 if c == 0 else min(c, shots - 1)
        masks[first:, c, 4 + 9 * c : 10 + 9 * c, 5:15] = 1
    return torch.randn(shots, channels, *size) + masks.sum(1, keepdim=True), masks


def image(case, batch=1, channels=1):
    return torch.randn(batch, channels, *(SMALL | CASES[case])["patch_size"])


def small_supervoxels(dataset, folder):
    """Supervoxels of at least 20 voxels of all cases."""
    make_supervoxels(
        dataset,
        dataset.identifiers,
        folder,
        spacing=lambda properties: properties["spacing"],
        parameters=SupervoxelParameters(min_size=20),
        masked=False,
    )


def after_encoder(file, **settings):
    return from_authors("faf_net", file.state_dict, **settings).double()
