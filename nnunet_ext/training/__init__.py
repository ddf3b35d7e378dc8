"""Training code that all trainers share; the thin trainer classes are in the folder `trainers`."""

from nnunet_ext.networks.from_plan import network_from_plan
from nnunet_ext.nnunet.budget import Budget
from nnunet_ext.profiling.contract import TraceableTrainer
from nnunet_ext.training.adamw import AdamWTrainer
from nnunet_ext.training.baselines import MedNeXtBaseTrainer, MONAIStagesTrainer, MONAITrainer
from nnunet_ext.training.em_net import EMNetBaseTrainer
from nnunet_ext.training.faf_net_encoder import ChosenEncoderTrainer
from nnunet_ext.training.faf_net_labels import FAFNetLabelTrainer
from nnunet_ext.training.faf_net_supervoxels import FAFNetSupervoxelTrainer
from nnunet_ext.training.lstm_sa import SliceNetworkTrainer
from nnunet_ext.training.self_updating import SelfUpdatingLossTrainer
from nnunet_ext.training.trainer import PluginTrainer

__all__ = [
    "AdamWTrainer",
    "Budget",
    "ChosenEncoderTrainer",
    "EMNetBaseTrainer",
    "FAFNetLabelTrainer",
    "FAFNetSupervoxelTrainer",
    "MONAIStagesTrainer",
    "MONAITrainer",
    "MedNeXtBaseTrainer",
    "PluginTrainer",
    "SelfUpdatingLossTrainer",
    "SliceNetworkTrainer",
    "TraceableTrainer",
    "network_from_plan",
]
