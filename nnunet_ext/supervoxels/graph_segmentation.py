"""Felzenszwalb and Huttenlocher's graph segmentation on a 3D grid, with equal results by the C extension and NumPy.

Source: Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004.
Deviations: three dimensions, and weights that respect the voxels' spacing (Hansen et al., "Anomaly detection-inspired
few-shot medical image segmentation through self-supervision with supervoxels", MedIA 2022); ties are broken.
"""

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_ext.ops.native import NativeLibrary, checked, library_for, structure
from nnunet_ext.ops.self_check import Pairs
from nnunet_ext.supervoxels.numpy_segmentation import segment_numpy

CONNECTIVITIES = {6: 1, 18: 2, 26: 3}
"""Number of neighbours -> number of axes on which a neighbour may differ."""

BACKENDS = ("extension", "numpy")


def grid_offsets(connectivity: int) -> list[tuple[int, int, int]]:
    """One of each pair of opposite neighbours (dz, dy, dx), in lexicographic order.

    Raises:
        ValueError: for any number but 6, 18 and 26.
    """
    if connectivity not in CONNECTIVITIES:
        raise ValueError(f"`connectivity`={connectivity!r} is unknown; known: 6, 18, 26")
    steps = (-1, 0, 1)
    neighbours = [o for o in itertools.product(steps, steps, steps) if o > (0, 0, 0)]
    return [o for o in neighbours if sum(map(abs, o)) <= CONNECTIVITIES[connectivity]]


def edge_weights(
    image: NDArray[np.float32], mask: NDArray[np.bool_], spacing: Sequence[float], connectivity: int
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """w(p, q) = ||I(p) - I(q)|| f, f = |p - q|_mm / (|p - q|_voxels min(spacing)), for neighbours p and q in the mask.

    f is the neighbours' distance relative to that in a grid whose spacing is the smallest one on every axis; it is 1 in
    every direction if the spacing is isotropic. Like Hansen et al. we multiply by it. A region ends in a step of
    intensity, which is as high between thick slices as between thin ones: dividing by the distance (a gradient) would
    let segments leak through thick slices. Besides, evidence that two voxels belong together weakens with distance.

    Args:
        image: Intensities, 0..255.
        mask: Voxels to segment.
        spacing: Spacing of the axes D, H and W, in mm.
        connectivity: 6, 18 or 26 neighbours.

    Shape:
        image (M, D, H, W); mask (D, H, W); result (E,) twice.

    Returns:
        Weights, and ids in ascending order: o DHW + p for the edge from voxel p along the o-th offset.
    """
    voxels, grid = mask.size, np.arange(mask.size, dtype=np.uint32).reshape(mask.shape)
    weights, ids = [], []
    for index, offset in enumerate(grid_offsets(connectivity)):
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, mask.shape, strict=True))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, mask.shape, strict=True))
        inside = mask[here] & mask[there]
        differences = [modality[there] - modality[here] for modality in image]
        norm = np.abs(differences[0]) if len(image) == 1 else np.sqrt(sum(map(np.square, differences)))
        weights.append(norm[inside] * np.float32(distance_factor(offset, spacing)))
        ids.append(grid[here][inside] + np.uint32(index * voxels))
    return np.concatenate(weights), np.concatenate(ids)


def distance_factor(offset: Sequence[int], spacing: Sequence[float]) -> float:
    """f of `edge_weights`; at least 1."""
    axes = [s / min(spacing) for o, s in zip(offset, spacing, strict=True) if o]
    return (sum(s * s for s in axes) / len(axes)) ** 0.5


def segment_grid(
    image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    spacing: Sequence[float],
    *,
    scale: float,
    min_size: int,
    connectivity: int = 6,
    backend: str | None = None,
) -> NDArray[np.int32]:
    """Joins components A, B along edges in the order of w if w <= min(Int(A) + k / |A|, Int(B) + k / |B|).

    Int(C) is the largest weight by which C was joined, 0 for a single voxel. Then, in the same order, every edge joins
    its two components if one is smaller than `min_size`; a component without neighbours in the mask stays small. Edges
    of equal weight come in the order of their ids (see `edge_weights`), so the result is the same on every machine.

    Args:
        image, mask, spacing, connectivity: As in `edge_weights`.
        scale: k, in the unit of w; larger k, larger segments.
        min_size: Smallest size of a component, in voxels.
        backend: "extension", "numpy", or None for the fastest available one.

    Returns:
        Labels, 0 outside the mask and 1, 2, .. inside, in the order of their first voxels.

    Raises:
        ValueError: for an unknown or unavailable backend, and for a volume too large for 32-bit indices.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"`backend`={backend!r} is unknown; known: {', '.join(BACKENDS)}")
    offsets = grid_offsets(connectivity)
    if mask.size * len(offsets) >= 2**32 or mask.size >= 2**31:
        most = min(2**31, 2**32 // len(offsets)) - 1
        raise ValueError(f"`image` has {mask.size} voxels; the most at `connectivity`={connectivity} is {most}")
    library = None if backend == "numpy" else library_for("graph_segmentation")
    if library is None and backend == "extension":
        raise ValueError("`backend`='extension' needs the C extension, which was not built; known: 'numpy'")
    weights, ids = edge_weights(image, mask, spacing, connectivity)
    _, height, width = mask.shape
    steps = np.array([(dz * height + dy) * width + dx for dz, dy, dx in offsets], np.int64)
    if library is None:
        root = segment_numpy(mask.size, weights, ids, steps=steps, scale=scale, min_size=min_size)
    else:
        root = _segment_extension(library, mask.size, weights, ids=ids, steps=steps, scale=scale, min_size=min_size)
    return _number(root.reshape(mask.shape), mask)


def _number(root: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Consecutive labels in the order of the components' first voxels, whichever voxel is a component's root."""
    inside = root[mask]
    first = np.full(root.size, inside.size, np.int32)
    first[inside[::-1]] = np.arange(inside.size - 1, -1, -1, dtype=np.int32)
    starts = np.zeros(inside.size + 1, np.int32)
    starts[first[inside]] = 1
    labels = np.zeros(root.shape, np.int32)
    labels[mask] = starts.cumsum(dtype=np.int32)[first[inside]]
    return labels


@structure("graph")
class _Graph(ctypes.Structure):
    """`graph` of csrc/graph_segmentation.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("voxels", "edges", "min_size")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("steps", "weights", "ids", "root")),
    ]


def _segment_extension(
    library: NativeLibrary,
    voxels: int,
    weights: NDArray[np.float32],
    *,
    ids: NDArray[np.uint32],
    steps: NDArray[np.int64],
    scale: float,
    min_size: int,
) -> NDArray[np.int32]:
    """A representative voxel of each voxel's component; weights and ids are overwritten."""
    root = np.empty(voxels, np.int32)
    graph = _Graph(voxels=voxels, edges=len(weights), min_size=min_size, scale=scale)
    graph.steps, graph.weights, graph.ids, graph.root = (x.ctypes.data for x in (steps, weights, ids, root))
    library.call("graph_segmentation", graph)
    return root


@checked("graph_segmentation")
def _compare(library: NativeLibrary) -> Pairs:
    shape = (3, 5, 7)
    image = np.sin(np.arange(np.prod(shape), dtype=np.float32) ** 2).reshape(1, *shape) * 100
    mask = np.ones(shape, bool)
    weights, ids = edge_weights(image, mask, (2.0, 1.0, 1.0), 6)
    steps = np.array([(dz * shape[1] + dy) * shape[2] + dx for dz, dy, dx in grid_offsets(6)], np.int64)
    found = _segment_extension(library, mask.size, weights.copy(), ids=ids.copy(), steps=steps, scale=50.0, min_size=2)
    expected = segment_numpy(mask.size, weights, ids, steps=steps, scale=50.0, min_size=2)
    labels = (_number(root.reshape(shape), mask) for root in (found, expected))
    yield tuple(torch.from_numpy(x) for x in labels)  # type: ignore[misc]
