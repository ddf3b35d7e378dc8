from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn

from nnunet_ext.training import MONAITrainer


class MONAIUNetPlusPlusTrainer(MONAITrainer):
    """UNet++, Zhou et al., DLMIA 2018, by MONAI's `BasicUNetPlusPlus` with its default widths.

    Its four outputs have full resolution. They have equal weights in the loss, as in the paper; the last is predicted.
    """

    network_class = "monai.networks.nets.BasicUNetPlusPlus"
    least_patch = 16
    lower_heads = ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3")

    @staticmethod
    def network_outputs(outputs: list[Tensor]) -> list[Tensor]:
        """The deepest output first."""
        return outputs[::-1]

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        if isinstance(loss, DeepSupervisionWrapper):
            loss.weight_factors = (1 / len(loss.weight_factors),) * len(loss.weight_factors)
        return loss
