from nnunet_ext.training import EMNetBaseTrainer


class EMNetAuthorsTrainer(EMNetBaseTrainer):
    """EM-Net as in its authors' code, whose FFT does not run over space; see `nnunet_ext.networks.em_net.efl`."""

    network_settings = {"efl_layout": "authors"}
