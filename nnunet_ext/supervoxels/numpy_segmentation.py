"""The NumPy form of `nnunet_ext.supervoxels.graph_segmentation`'s kernel, for machines without the C extension.

Whether an edge joins two components depends on all edges before it, so a minimum spanning tree is not enough: an edge
of the tree may be refused, and a heavier parallel edge accepted later. But edges that do nothing can be found many at
a time.
"""

import numpy as np
from numpy.typing import NDArray

_BATCH = 1 << 18
"""Number of edges in a batch, which does not affect the result."""

Nodes = NDArray[np.int32]


def segment_numpy(
    voxels: int,
    weights: NDArray[np.float32],
    ids: NDArray[np.uint32],
    *,
    steps: NDArray[np.int64],
    scale: float,
    min_size: int,
) -> Nodes:
    """A representative voxel of each voxel's component.

    A batch of edges is first reduced to those that can still join components, and only these are visited one by one.
    Three kinds are dropped: edges within a component; edges of a component that will never grow again, because its
    limit Int + k / size is below all remaining weights; and all but the first edge between the same two components,
    because the first one either joins them or shows that one of them is complete.

    Args:
        voxels: Number of voxels.
        weights: Weights of the edges, by ascending id.
        ids: o * voxels + p of the edge between the voxels p and p + steps[o].
        steps: Difference of the voxel indices for each offset o.
        scale: k of `segment_grid`.
        min_size: Smallest size of a component, in voxels.

    Shape:
        weights and ids (E,); result (voxels,).
    """
    forest = _Forest(voxels, scale)
    order = np.argsort(weights, kind="stable")
    left = [ids[:0]]
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        a, b = forest.ends(ids[batch], steps)
        between = a != b
        left.append(ids[batch[between]])
        # The first weight of the batch is its smallest.
        growing = np.minimum(forest.limit[a], forest.limit[b]) >= weights[batch[0]]
        chosen = _first_of_pair(a, b, between & growing)
        forest.join_by_limit(a[chosen], b[chosen], weights[batch[chosen]])
    del order
    remaining = np.concatenate(left)
    for start in range(0, len(remaining), _BATCH):
        a, b = forest.ends(remaining[start : start + _BATCH], steps)
        chosen = _first_of_pair(a, b, (a != b) & (np.minimum(forest.size[a], forest.size[b]) < min_size))
        forest.join_small(a[chosen], b[chosen], min_size)
    return forest.roots(np.arange(voxels))


def _first_of_pair(a: Nodes, b: Nodes, usable: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Ascending indices of the usable edges that are the first between their components."""
    index = np.flatnonzero(usable)
    a, b = a[index], b[index]
    pairs = np.minimum(a, b).astype(np.int64) << 32 | np.maximum(a, b)
    return index[np.sort(np.unique(pairs, return_index=True)[1])]


class _Forest:
    """Components as trees; size and limit are stored for the roots."""

    def __init__(self, voxels: int, scale: float) -> None:
        self.scale = scale
        self.root = np.arange(voxels, dtype=np.int32)
        self.size = np.ones(voxels, np.int32)
        self.limit = np.full(voxels, scale, np.float64)

    def roots(self, nodes: NDArray[np.int64]) -> Nodes:
        found = self.root[nodes]
        while not np.array_equal(above := self.root[found], found):
            found = above
        self.root[nodes] = found
        return found

    def ends(self, ids: NDArray[np.uint32], steps: NDArray[np.int64]) -> tuple[Nodes, Nodes]:
        """Components of the edges' two ends."""
        offset, p = np.divmod(ids.astype(np.int64), self.root.size)
        return self.roots(p), self.roots(p + steps[offset])

    def join_by_limit(self, a: Nodes, b: Nodes, weights: NDArray[np.float32]) -> None:
        # Loops over lists of Python numbers, renumbered from 0, are several times faster than over arrays.
        nodes, first, second = _renumber(a, b)
        root, size, limit = list(range(len(nodes))), self.size[nodes].tolist(), self.limit[nodes].tolist()
        for p, q, weight in zip(first, second, weights.tolist(), strict=True):
            while root[p] != p:
                root[p] = p = root[root[p]]
            while root[q] != q:
                root[q] = q = root[root[q]]
            if p != q and weight <= limit[p] and weight <= limit[q]:
                if size[p] < size[q]:
                    p, q = q, p
                root[q] = p
                size[p] += size[q]
                limit[p] = weight + self.scale / size[p]
        self.root[nodes], self.size[nodes], self.limit[nodes] = nodes[root], size, limit

    def join_small(self, a: Nodes, b: Nodes, min_size: int) -> None:
        nodes, first, second = _renumber(a, b)
        root, size = list(range(len(nodes))), self.size[nodes].tolist()
        for p, q in zip(first, second, strict=True):
            while root[p] != p:
                root[p] = p = root[root[p]]
            while root[q] != q:
                root[q] = q = root[root[q]]
            if p != q and (size[p] < min_size or size[q] < min_size):
                if size[p] < size[q]:
                    p, q = q, p
                root[q] = p
                size[p] += size[q]
        self.root[nodes], self.size[nodes] = nodes[root], size


def _renumber(a: Nodes, b: Nodes) -> tuple[Nodes, list[int], list[int]]:
    """The distinct nodes of both, and both as indices into them."""
    nodes, index = np.unique(np.concatenate((a, b)), return_inverse=True)
    return nodes, index[: len(a)].tolist(), index[len(a) :].tolist()
