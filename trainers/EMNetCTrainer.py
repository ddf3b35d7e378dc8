from nnunet_ext.training import EMNetBaseTrainer


class EMNetCTrainer(EMNetBaseTrainer):
    """The paper's variant C: frequency layers in all stages."""

    network_settings = {"variant": "C"}
