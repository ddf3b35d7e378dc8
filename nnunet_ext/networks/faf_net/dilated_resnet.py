"""torchvision's ResNets up to layer3, at stride 4: layer2 and layer3 are dilated instead of strided.

Sources: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016); Chen et al., "Rethinking Atrous
Convolution for Semantic Image Segmentation" (arXiv 1706.05587). torchvision is imported when one is built.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_ext.blocks.layout import cpu_channels_last
from nnunet_ext.networks.faf_net.pretrainable import Pretrainable
from nnunet_ext.networks.keys import check_keys, load_checked
from nnunet_ext.utils.torch_private import has_hooks

RESNETS = ("resnet101", "resnet50", "resnet18")
_COCO = {"resnet101": "deeplabv3_resnet101", "resnet50": "deeplabv3_resnet50"}
_DROPPED = ("layer4.", "fc.")
_DILATIONS = {"layer2": (1, 2), "layer3": (2, 4)}
"""Dilations of a layer's first block and of its other blocks."""


class DilatedResNet(Pretrainable):
    """A ResNet of torchvision without layer4, its parameters under torchvision's names, at stride 4.

    Args:
        name: One of `RESNETS`. Its weights are ``"imagenet"`` or ``"coco"``, the backbone of DeepLabV3 (resnet101 and
            resnet50).

    Attributes:
        width: Channels of the output.
        frozen_norms: Set by `freeze_norms` and `load_pretrained`; see `Pretrainable`.

    Shape:
        (B, 3, H, W) -> (B, width, ceil(H / 4), ceil(W / 4)) in channels-last memory on the CPU

    Raises:
        ValueError: for an unknown name.
    """

    known_weights = ("imagenet", "coco")

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"unknown ResNet {name!r}; known: {', '.join(RESNETS)}")
        import torchvision

        resnet = torchvision.models.get_model(name, weights=None)
        self.name = name
        self.conv1, self.bn1, self.maxpool = resnet.conv1, resnet.bn1, resnet.maxpool
        self.layer1, self.layer2, self.layer3 = resnet.layer1, resnet.layer2, resnet.layer3
        # Done by hand because torchvision's basic block (resnet18) does not support dilation.
        for layer, dilations in _DILATIONS.items():
            for i, block in enumerate(self.get_submodule(layer).children()):
                _dilate(block, dilations[min(i, 1)])
        *_, last = (module for module in self.layer3.modules() if isinstance(module, nn.BatchNorm2d))
        self.width = last.num_features

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(cpu_channels_last(x)))
        x = self.maxpool(F.relu(x, inplace=not has_hooks(self.bn1)))
        return self.layer3(self.layer2(self.layer1(x)))

    def _load(self, weights: str | Mapping[str, Tensor]) -> None:
        state = self._downloaded(weights) if isinstance(weights, str) else weights
        state = {key: value for key, value in state.items() if not key.startswith(_DROPPED)}
        check_keys(self.name, state, self.state_dict(), whose="torchvision's")
        load_checked(self.name, self, state, whose="torchvision's")

    def _downloaded(self, weights: str) -> dict[str, Tensor]:
        import torchvision

        if weights == "imagenet":
            found = torchvision.models.get_model_weights(self.name)["IMAGENET1K_V1"]
        elif self.name not in _COCO:
            raise ValueError(f"`weights`='coco' exist for {', '.join(_COCO)}, not for {self.name}")
        else:
            found = torchvision.models.get_model_weights(_COCO[self.name])["COCO_WITH_VOC_LABELS_V1"]
        try:
            state = found.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network; a broken download
            raise RuntimeError(
                f"the {weights} weights of {self.name} cannot be downloaded ({error}). Put {found.url} into torch's "
                "cache (TORCH_HOME/hub/checkpoints), or start from scratch with weights=None"
            ) from error
        if weights == "coco":
            prefix = "backbone."
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return state


def _dilate(block: nn.Module, dilation: int) -> None:
    """Removes a block's stride and dilates its 3x3 convolutions."""
    for conv in block.modules():
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)
