"""The common part of FAF-Net's pretrained backbones: batch norms with fixed statistics, the grid of stride 4."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from nnunet_ext.networks.faf_net.positions import STRIDE, strided_grid
from nnunet_ext.utils.torch_private import BatchNorm

_Backbone = TypeVar("_Backbone", bound="Pretrainable")


class Pretrainable(nn.Module):
    """A backbone with a grid of stride 4 whose batch norms can be made to keep their statistics.

    Attributes:
        known_weights: Names of the weights that can be downloaded.
        filter_step: Positions of the grid per position of AFF's filters, by default.
        frozen_norms: Whether batch norms keep their statistics even in training, as pretrained ones do, because a few
            slices give poor statistics. Scales and shifts are still trained.
    """

    known_weights: tuple[str, ...] = ()
    filter_step = 1

    def __init__(self) -> None:
        super().__init__()
        self.frozen_norms = False

    def train(self: _Backbone, mode: bool = True) -> _Backbone:
        super().train(mode)
        if self.frozen_norms:
            for module in self.modules():
                # Any kind of batch norm: distributed training uses synchronised ones.
                if isinstance(module, BatchNorm):
                    module.eval()
        return self

    def load_pretrained(self, weights: str | Mapping[str, Tensor]) -> None:
        """Loads weights and freezes the batch norms' statistics.

        Args:
            weights: One of `known_weights`, which is downloaded once, or a state dict with the names of the encoder's
                library.

        Raises:
            ValueError: for unknown weights, or for a state dict of another network.
            RuntimeError: if they cannot be downloaded; the message says which file to fetch, and where to put it.
        """
        if isinstance(weights, str) and weights not in self.known_weights:
            raise ValueError(f"unknown `weights` {weights!r}; known: {', '.join(self.known_weights)}, None")
        self._load(weights)
        self.freeze_norms()

    def _load(self, weights: str | Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def freeze_norms(self) -> None:
        """Makes the batch norms keep their statistics from now on."""
        self.frozen_norms = True
        self.train(self.training)

    def grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Size of the output for images of a given size."""
        return strided_grid(size)

    def least_size(self, positions: int) -> tuple[int, ...]:
        """The smallest images with this many positions per axis."""
        return ((positions - 1) * STRIDE + 1,) * 2
