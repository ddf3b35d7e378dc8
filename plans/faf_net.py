"""Plans for FAF-Net."""

from torch import nn

from nnunet_ext.networks import FAFNet
from nnunet_ext.planning.planner import TracedPlanner
from nnunet_ext.planning.preset import Preset


class FAFNetPlanner(TracedPlanner):
    """FAF-Net, traced with its trainers' step: support slices, and some of a patch's slices as queries."""

    network = FAFNet
    trainer_name = "FAFNetResNet101Trainer"
    poolings = 2
    preset = Preset(
        configuration="2d",
        patch_size=(257, 257),
        arguments={  # for the plan's own encoder, which a ResNet does not use; 257 is divisible by strides of 1
            "n_stages": 2,
            "features_per_stage": (32, 64),
            "conv_op": nn.Conv2d,
            "kernel_sizes": 3,
            "strides": 1,
        },
        settings={"encoder": "resnet101"},
        source="Cheng et al., FAF-Net: images of 257 x 257 by ResNet-101",
    )
