"""Environment variables by which a user chooses the encoder of FAF-Net; see `nnunet_ext.training.encoder_choice`."""

ENCODER = "NNUNET_EXT_ENCODER"
"""Its name, such as ``timm:resnet50``."""
ENCODER_FROZEN = "NNUNET_EXT_ENCODER_FROZEN"
"""Whether it is never trained, 0 or 1."""
ENCODER_WEIGHTS = "NNUNET_EXT_ENCODER_WEIGHTS"
"""Its initial weights: a name that the encoder knows, a file, or none."""
