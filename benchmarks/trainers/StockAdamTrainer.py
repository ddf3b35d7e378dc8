from nnunet_ext.training import SliceNetworkTrainer


class StockAdamTrainer(SliceNetworkTrainer):
    """nnU-Net's network trained like LSTMSA: a control for what is due to the optimiser, its rate and the loss."""

    network_settings = {}
