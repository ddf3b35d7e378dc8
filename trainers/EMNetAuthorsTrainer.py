from nnunet_ext.training import EMNetBaseTrainer


class EMNetAuthorsTrainer(EMNetBaseTrainer):
    """EM-Net as its authors' code has it: its FFT runs over misread memory; see `nnunet_ext.networks.em_net.efl`."""

    network_settings = {"efl_layout": "authors"}
