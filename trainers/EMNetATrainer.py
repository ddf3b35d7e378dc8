from nnunet_ext.training import EMNetBaseTrainer


class EMNetATrainer(EMNetBaseTrainer):
    """The paper's variant A: no frequency layers."""

    network_settings = {"variant": "A"}
