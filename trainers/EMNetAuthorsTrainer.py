from nnunet_ext.training import EMNetBaseTrainer


class EMNetAuthorsTrainer(EMNetBaseTrainer):
    """EM-Net as its authors' code has it: its FFT runs over misread memory; see `nnunet_ext.blocks.efl`."""

    network_settings = {"efl_layout": "authors"}
