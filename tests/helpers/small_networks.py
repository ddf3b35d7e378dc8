"""Small forms of all networks, for tests of every network."""

import torch
from torch import nn

from nnunet_ext.check.subject import Subject
from nnunet_ext.networks import NETWORKS, MTUNet
from nnunet_ext.networks.from_plan import adapted_topology
from nnunet_ext.networks.topology import Topology

CASES = {
    "3d": {"conv_op": nn.Conv3d, "patch_size": (16, 16, 24), "strides": 2, "kernel_sizes": 3},
    "2d": {"conv_op": nn.Conv2d, "patch_size": (32, 24), "strides": 2, "kernel_sizes": 3},
    "anisotropic": {
        "conv_op": nn.Conv3d,
        "patch_size": (16, 64, 64),
        "strides": [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)],
        "kernel_sizes": [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)],
    },
    "odd level sizes": {"conv_op": nn.Conv3d, "patch_size": (24, 40, 8), "strides": 2, "kernel_sizes": 3},
}

FURTHER = {"faf_net": {"encoder": "plan"}}
"""Arguments that make a network small enough for these tests."""

MT_UNET = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (96, 64),
    "features_per_stage": (4, 6, 8, 8, 12, 16),
    "heads": 2,
}
"""In 2D and of its own topology; it is LSTM-SA's backbone and has no trainer of its own."""

EVERY = [*sorted(NETWORKS), "mt_unet"]


def build(name, case, input_channels=1, num_classes=3, deep_supervision=False, n_stages=4):
    if name == "mt_unet":
        of_data = {"input_channels": input_channels, "num_classes": num_classes}
        return MTUNet(**MT_UNET | of_data, deep_supervision=deep_supervision)
    common = {"n_stages": n_stages, "features_per_stage": (4, 6, 8, 10)[:n_stages]}
    return with_support(
        NETWORKS[name].network(
            input_channels=input_channels,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
            **FURTHER.get(name, {}),
            **common,
            **CASES[case],
        )
    )


def planned(name, patch_size, input_channels=1, num_classes=3, n_stages=4, **settings):
    """A network for the plan of a patch, wide enough at its lowest stages for U-Mamba's channels to be tokens there."""
    return with_support(
        NETWORKS[name].network(
            input_channels=input_channels,
            num_classes=num_classes,
            patch_size=patch_size,
            n_stages=n_stages,
            features_per_stage=(4, 6, 8, 16, 16)[:n_stages],
            conv_op=nn.Conv2d if len(patch_size) == 2 else nn.Conv3d,
            deep_supervision=True,
            **{"kernel_sizes": 3, "strides": 2} | FURTHER.get(name, {}) | settings,
        )
    )


def with_support(network):
    """Gives few-shot networks the support that they need for prediction."""
    if hasattr(network, "set_support"):
        size = network.patch_size[-2:]
        masks = torch.zeros(2, network.num_classes - 1, *size)
        masks[..., : size[0] // 2, min(2, size[1] - 1) :] = 1
        network.set_support(torch.randn(2, network.input_channels, *size), masks)
    return network


def image(case, batch=1, input_channels=1):
    return torch.randn(batch, input_channels, *CASES[case]["patch_size"])


def images_for(network, batch=1):
    return torch.randn(batch, network.input_channels, *network.patch_size)


def subject(name, case, input_channels=1):
    """A network for the checks of `nnunet_ext check`; each has a list of outputs, of one where there are no others."""
    if name == "mt_unet":
        patch_size, scales = MT_UNET["patch_size"], None
    else:
        plan = CASES[case] | {"n_stages": 4, "features_per_stage": 4}
        if name in ("lstmsa", "salstm"):  # they never pool slices
            plan = adapted_topology(NETWORKS[name].network, plan)
        topology = Topology.create(**plan)
        patch_size = topology.patch_size
        outputs = topology.sizes[:-1] if NETWORKS[name].lower_outputs else topology.sizes[:1]
        scales = tuple(tuple(s / full for s, full in zip(size, patch_size, strict=True)) for size in outputs)
    return Subject(
        name,
        lambda deep_supervision: build(name, case, input_channels, deep_supervision=deep_supervision),
        patch_size,
        input_channels,
        scales=scales,
        idle=("conv.bias",),
    )
