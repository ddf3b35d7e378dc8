from nnunet_ext.networks import LSTMSA
from nnunet_ext.training import SliceNetworkTrainer


class LSTMSAUNetPlusPlusTrainer(SliceNetworkTrainer):
    """LSTMSA on UNet++ with MONAI's default widths, slice by slice: an example of a backbone from a library."""

    network_class = LSTMSA
    network_settings = {"backbone": "monai.networks.nets.BasicUNetPlusPlus"}
    has_lower_outputs = False
    patch_multiple = (1, 16, 16)
