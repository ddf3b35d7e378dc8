from nnunet_ext.training import EMNetBaseTrainer


class EMNetBTrainer(EMNetBaseTrainer):
    """The paper's variant B: frequency layers in the shallow half of the stages."""

    network_settings = {"variant": "B"}
