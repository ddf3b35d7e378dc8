"""LSTM-SA: SALSTM and LSTMSA, with LSTM and self-attention over neighbouring slices."""

from nnunet_ext.networks.lstm_sa.network import LSTMSA, MT_UNET, SALSTM

__all__ = ["LSTMSA", "MT_UNET", "SALSTM"]
