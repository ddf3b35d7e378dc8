from nnunet_ext.networks import SASAN
from nnunet_ext.training import SelfUpdatingLossTrainer


class SASANTrainer(SelfUpdatingLossTrainer):
    """SASAN with the paper's self-updating (SM) loss."""

    network_class = SASAN
