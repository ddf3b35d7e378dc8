from nnunet_ext.networks import LSTMSA
from nnunet_ext.training import SliceNetworkTrainer


class LSTMSATrainer(SliceNetworkTrainer):
    """LSTMSA on the plan's own U-Net, slice by slice."""

    network_class = LSTMSA
