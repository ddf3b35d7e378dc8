"""LSTM-SA: SALSTM and LSTMSA, with LSTM and self-attention over neighbouring slices."""

from nnunet_ext.networks.lstm_sa.backbones import MT_UNET
from nnunet_ext.networks.lstm_sa.network import LSTMSA, SALSTM

__all__ = ["LSTMSA", "MT_UNET", "SALSTM"]
