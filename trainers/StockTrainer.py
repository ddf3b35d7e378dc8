from nnunet_ext.training import PluginTrainer


class StockTrainer(PluginTrainer):
    """nnU-Net's default network and training, with this package's budget variables, for fair short runs."""
