from nnunet_ext.networks import SALSTM
from nnunet_ext.training import SliceNetworkTrainer


class SALSTMTrainer(SliceNetworkTrainer):
    """SALSTM on the plan's own U-Net, slice by slice."""

    network_class = SALSTM
