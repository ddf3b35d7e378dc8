"""The registry of networks, which the tests, the command line and the weight import iterate over."""

from dataclasses import dataclass

from torch import nn

from nnunet_ext.networks.em_net import VARIANTS as EM_NET_VARIANTS
from nnunet_ext.networks.em_net import EMNet
from nnunet_ext.networks.faf_net import FAFNet
from nnunet_ext.networks.lstm_sa import LSTMSA, MT_UNET, SALSTM
from nnunet_ext.networks.sasan import SASAN
from nnunet_ext.networks.u_mamba import VARIANTS as U_MAMBA_VARIANTS
from nnunet_ext.networks.u_mamba import UMamba


@dataclass(frozen=True)
class NetworkInfo:
    """A network and its metadata.

    Attributes:
        name: Short name, as in `nnunet_ext.weights.from_authors`, which has `umamba_bot` and `umamba_enc` for U-Mamba.
        network: Class of the network.
        trainers: Names of the trainers that build it.
        variants: Names of its variants, in the paper's letters; empty if there is only one form.
        paper: The paper's setting: constructor arguments for which parameters are reported.
        lower_outputs: Whether it has outputs at lower resolutions, for deep supervision.
        any_size: Whether it accepts images of a size other than its patch.
    """

    name: str
    network: type[nn.Module]
    trainers: tuple[str, ...]
    paper: dict
    variants: tuple[str, ...] = ()
    lower_outputs: bool = True
    any_size: bool = False


_LSTM_SA_PAPER = {"input_channels": 1, "num_classes": 4, "patch_size": (224, 224), "backbone": MT_UNET}

_INFOS = (
    NetworkInfo(
        name="sasan",
        network=SASAN,
        trainers=("SASANTrainer", "SASANTrainerDiceCE"),
        paper={
            "input_channels": 1,
            "num_classes": 5,
            "patch_size": (96, 96, 96),
            "n_stages": 5,
            "features_per_stage": (32, 64, 128, 256, 512),
            "conv_op": nn.Conv3d,
            "kernel_sizes": 3,
            "strides": 2,
        },
    ),
    NetworkInfo(
        name="em_net",
        network=EMNet,
        trainers=(
            "EMNetTrainer",
            "EMNetSGDTrainer",
            "EMNetAuthorsTrainer",
            "EMNetATrainer",
            "EMNetBTrainer",
            "EMNetCTrainer",
            "EMNetNoMambaTrainer",
        ),
        variants=tuple(EM_NET_VARIANTS),
        paper={
            "input_channels": 1,
            "num_classes": 9,
            "patch_size": (128, 128, 128),
            "n_stages": 5,
            "features_per_stage": (48, 48, 96, 192, 384),
            "conv_op": nn.Conv3d,
            "kernel_sizes": 3,
            "strides": (1, 4, 2, 2, 2),
        },
    ),
    NetworkInfo(name="salstm", network=SALSTM, trainers=("SALSTMTrainer", "SALSTMMTUNetTrainer"), paper=_LSTM_SA_PAPER),
    NetworkInfo(
        name="lstmsa",
        network=LSTMSA,
        trainers=("LSTMSATrainer", "LSTMSAMTUNetTrainer", "LSTMSAUNetPlusPlusTrainer"),
        paper=_LSTM_SA_PAPER,
    ),
    NetworkInfo(
        name="faf_net",
        network=FAFNet,
        trainers=(
            "FAFNetTrainer",
            "FAFNetResNet101Trainer",
            "FAFNetFewShotTrainer",
            "FAFNetTimmTrainer",
            "FAFNetFewShotTimmTrainer",
        ),
        paper={
            "input_channels": 1,
            "num_classes": 2,
            "patch_size": (257, 257),
            "n_stages": 2,  # only the plan's encoder uses these stages; the paper's encoder is a ResNet-101
            "features_per_stage": 1,
            "conv_op": nn.Conv2d,
            "kernel_sizes": 1,
            "strides": 1,
        },
        lower_outputs=False,
        any_size=True,
    ),
    NetworkInfo(
        name="u_mamba",
        network=UMamba,
        trainers=("UMambaEncTrainer", "UMambaBotTrainer", "UMambaBotNoMambaTrainer"),
        variants=tuple(U_MAMBA_VARIANTS),
        paper={  # The paper takes nnU-Net's plans and names no setting of its own: this is the plan for this patch.
            "input_channels": 1,
            "num_classes": 14,
            "patch_size": (128, 128, 128),
            "n_stages": 6,
            "features_per_stage": (32, 64, 128, 256, 320, 320),
            "conv_op": nn.Conv3d,
            "kernel_sizes": 3,
            "strides": 2,
        },
    ),
)

NETWORKS: dict[str, NetworkInfo] = {info.name: info for info in _INFOS}


def network_info(name: str) -> NetworkInfo:
    """Looks up a network by its short name.

    Raises:
        ValueError: for an unknown name; the message lists the known ones.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(sorted(NETWORKS))}")
    return NETWORKS[name]
