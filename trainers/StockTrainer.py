from nnunet_ext.training import PluginTrainer


class StockTrainer(PluginTrainer):
    """nnU-Net's default network and training, under the budget variables of this package: for fair short runs."""
