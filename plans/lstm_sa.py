"""Plans for SALSTM and LSTMSA."""

from collections.abc import Sequence

from torch import nn

from nnunet_ext.networks import LSTMSA, SALSTM
from nnunet_ext.networks.lstm_sa import MT_UNET
from nnunet_ext.planning.planner import TracedPlanner
from nnunet_ext.planning.preset import Preset

_MT_UNET_MULTIPLE = 32
_SLICES = 8
"""Slices in the preset's patch: the paper segments one slice at a time and specifies no number."""
_PRESET = Preset(
    configuration="3d_fullres",
    patch_size=(_SLICES, 224, 224),
    arguments={
        "n_stages": 6,
        "features_per_stage": (32, 64, 128, 256, 512, 512),
        "conv_op": nn.Conv3d,
        "kernel_sizes": [(1, 3, 3)] * 6,
        "strides": [(1, 1, 1)] + [(1, 2, 2)] * 5,
    },
    settings={"backbone": MT_UNET},
    source=f"Ji, Ye, Ma, LSTM-SA: slices of 224 x 224 by MT-UNet; {_SLICES} neighbouring slices per patch",
)


class LSTMSAPlanner(TracedPlanner):
    """LSTMSA on the plan's U-Net, or on MT-UNet with patches divisible by 32 in-plane."""

    network: type[nn.Module] | None = LSTMSA
    trainer_name = "LSTMSAMTUNetTrainer"
    poolings = 1
    preset = _PRESET

    def legal_patch(self, patch_size: Sequence[int]) -> tuple[int, ...]:
        *slices, height, width = super().legal_patch(patch_size)
        multiple = _MT_UNET_MULTIPLE if self.settings.get("backbone") == MT_UNET else 1
        return (*slices, *(-(-size // multiple) * multiple for size in (height, width)))


class SALSTMPlanner(LSTMSAPlanner):
    """SALSTM, planned like LSTMSA."""

    network = SALSTM
    trainer_name = "SALSTMMTUNetTrainer"
