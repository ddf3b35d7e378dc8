"""Trained networks as files that run without nnU-Net and this package, each compared with the original."""

from nnunet_ext.exporting.formats import FORMATS, ExportError
from nnunet_ext.exporting.run import run

__all__ = ["FORMATS", "ExportError", "run"]
