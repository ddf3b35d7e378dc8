"""Comparison of an exported file with the network it was made from, on tiles of images."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH_SIZES = (1, 3)
TOLERANCE = 1e-4
"""Largest allowed difference of logits, relative to the largest logit of the tile."""
_ROUNDINGS = 4
"""A network that magnifies rounding, through norms over few voxels for instance, may differ by so many times its own
error in float32."""


@dataclass(frozen=True)
class TileParity:
    """Comparison of a tile.

    Attributes:
        max_difference: Largest absolute difference of logits.
        relative_difference: The same divided by the largest absolute logit of the original.
        dice: Lowest Dice over the classes or regions, of the segmentations by the file and by the original; 1 where
            both have none.
        changed: Voxels with another label although the original's decision is clear: its logits are apart by more than
            twice the tolerance.
    """

    max_difference: float
    relative_difference: float
    dice: float
    changed: int


@dataclass(frozen=True)
class Parity:
    """Comparison of a file with its original.

    Attributes:
        source: Origin of the tiles, in words.
        batch_sizes: Sizes of the batches in which the file was run; the original ran tile by tile.
        tolerance: Largest allowed relative difference.
        tiles: Comparisons of the tiles, the worst over the batch sizes.
    """

    source: str
    batch_sizes: tuple[int, ...]
    tolerance: float
    tiles: tuple[TileParity, ...]

    @property
    def passed(self) -> bool:
        """Whether logits agree within the tolerance, and segmentations wherever the original's decision is clear."""
        # NaN compares as false, so that it fails.
        return all(tile.relative_difference <= self.tolerance and tile.changed == 0 for tile in self.tiles)

    @property
    def worst(self) -> TileParity:
        """The worst values over all tiles."""
        return _worst(self.tiles)

    def as_dict(self) -> dict[str, Any]:
        """Content for a JSON file."""
        content = {"passed": self.passed, "source": self.source, "number_of_tiles": len(self.tiles)}
        content |= {"batch_sizes": list(self.batch_sizes), "tolerance": self.tolerance}
        return content | {"worst": asdict(self.worst), "tiles": [asdict(tile) for tile in self.tiles]}


def compare(
    network: nn.Module, run: Callable[[Tensor], Tensor], tiles: Sequence[Tensor], *, source: str, regions: bool
) -> Parity:
    """Compares a file with its original.

    Args:
        network: The original, in evaluation.
        run: The file, as a function from tiles to logits.
        tiles: Tiles (M, *P).
        source: Origin of the tiles, in words.
        regions: Whether outputs are regions that may overlap, instead of classes of which the first is background.
    """
    with torch.no_grad():
        expected = [network(tile[None])[0] for tile in tiles]
        found = [_in_batches(run, tiles, size) for size in BATCH_SIZES]
    pairs = [[(logits[i], original) for logits in found] for i, original in enumerate(expected)]
    tolerance = TOLERANCE
    if any(_differences(*pair)[1] > tolerance for of_tile in pairs for pair in of_tile):
        tolerance = max(tolerance, _ROUNDINGS * _rounding(network, tiles[0]))
    of_tiles = [_worst([_compare_tile(*pair, regions, tolerance) for pair in of_tile]) for of_tile in pairs]
    return Parity(source, BATCH_SIZES, tolerance, tuple(of_tiles))


def _in_batches(run: Callable[[Tensor], Tensor], tiles: Sequence[Tensor], size: int) -> list[Tensor]:
    """Logits of every tile; batches are filled up with the first tiles, so that all have the size."""
    logits: list[Tensor] = []
    for start in range(0, len(tiles), size):
        batch = [tiles[i % len(tiles)] for i in range(start, start + size)]
        logits += run(torch.stack(batch)).unbind(0)
    return logits[: len(tiles)]


def _differences(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Largest difference, absolute and relative to the largest value."""
    largest = float((found - expected).abs().max())
    return largest, largest / max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny)


def _compare_tile(found: Tensor, expected: Tensor, regions: bool, tolerance: float) -> TileParity:
    masks, originals = (_masks(logits, regions) for logits in (found, expected))
    dice = min(_dice(a, b) for a, b in zip(masks, originals, strict=True))
    clear = _margin(expected, regions) > 2 * tolerance * expected.abs().max()
    return TileParity(*_differences(found, expected), dice, int(((masks != originals) & clear).any(0).sum()))


def _masks(logits: Tensor, regions: bool) -> Tensor:
    """Masks (R, *P) of the regions, or of the classes but background."""
    if regions:
        return logits > 0
    labels = torch.arange(1, max(2, len(logits))).view(-1, *[1] * (logits.ndim - 1))
    return logits.argmax(0) == labels


def _margin(logits: Tensor, regions: bool) -> Tensor:
    """Distance of logits from another decision, (R, *P) or (1, *P)."""
    if regions or len(logits) == 1:
        return logits.abs()
    first, second = logits.topk(2, 0).values
    return (first - second)[None]


def _dice(a: Tensor, b: Tensor) -> float:
    total = int(a.sum() + b.sum())
    return 1.0 if total == 0 else 2 * int((a & b).sum()) / total


def _rounding(network: nn.Module, tile: Tensor) -> float:
    """Relative error of the network itself in float32, measured against float64."""
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(tile[None].double())
        return float((network(tile[None]) - exact).abs().max() / exact.abs().max())


def _worst(tiles: Sequence[TileParity]) -> TileParity:
    differences = torch.tensor([[tile.max_difference, tile.relative_difference] for tile in tiles], dtype=torch.float64)
    # torch's maximum is NaN if any value is, Python's depends on the order.
    largest, relative = differences.amax(0).tolist()
    return TileParity(largest, relative, min(tile.dice for tile in tiles), max(tile.changed for tile in tiles))
