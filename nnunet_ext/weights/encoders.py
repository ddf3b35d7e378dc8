"""Weight files for FAF-Net's encoders."""

from pathlib import Path

from torch import Tensor

from nnunet_ext.networks.faf_net.timm_models import PREFIX, whole_network
from nnunet_ext.utils.state_dicts import read_state_dict
from nnunet_ext.weights.efficientnet_lite import efficientnet_lite_to_timm, is_efficientnet_lite


def encoder_weights(encoder: str, path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, with the names that `FAFNet.load_encoder_weights` expects; no code is executed.

    Args:
        encoder: `FAFNet`'s argument, such as ``"timm:tf_efficientnet_lite0"``.
        path: A file of torch.save or safetensors with the names of the encoder's library (timm, torchvision), those of
            a publication that timm converts, or those of efficientnet_lite_pytorch.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read safely or holds weights of another network.
    """
    state = read_state_dict(path)
    if encoder.startswith(PREFIX) and is_efficientnet_lite(state):
        return efficientnet_lite_to_timm(state, whole_network(encoder.removeprefix(PREFIX)).state_dict())
    return state
