from nnunet_ext.networks import LSTMSA
from nnunet_ext.training import SliceNetworkTrainer


class LSTMSAMTUNetTrainer(SliceNetworkTrainer):
    """LSTMSA on MT-UNet, the authors' baseline; for patches divisible by 32 in-plane."""

    network_class = LSTMSA
    network_settings = {"backbone": "mt_unet"}
    has_lower_outputs = False
    idle_parameters = ("axial.shift",)  # levels of one voxel have no distances
