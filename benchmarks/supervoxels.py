"""Time and memory for supervoxels of a 256 x 256 x 64 volume on one core: the C extension against NumPy.

python -m benchmarks.supervoxels [--repeats 3] [--clock wall]
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.measure import FLOAT32, Row, interleaved_seconds, peak_gigabytes, run, time_columns, timing_parser
from nnunet_ext.ops.native import native_library
from nnunet_ext.supervoxels import supervoxels
from nnunet_ext.supervoxels.graph_segmentation import BACKENDS

_SHAPE = (64, 256, 256)
_SPACING = (3.0, 1.0, 1.0)
_CONNECTIVITIES = (6, 26)


def smooth_noise(shape: Sequence[int]) -> NDArray[np.float32]:
    """Smooth blobs with fine noise, (D, H, W)."""
    generator = np.random.default_rng(0)
    blobs, grain = (gaussian_filter(generator.standard_normal(shape), sigma) for sigma in (3, 0.7))
    return (blobs + 0.02 * grain).astype(np.float32)


def prepare(backend: str, connectivity: int) -> Callable[[], NDArray[np.int32]]:
    """The call at full size, after a small call has loaded everything that stays in memory."""
    call = partial(supervoxels, spacing=_SPACING, connectivity=connectivity, backend=backend)
    call(smooth_noise((8, 16, 16)))
    return partial(call, smooth_noise(_SHAPE))


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    library = native_library()
    if library is None:
        sys.exit("the C extension was not built: install a C compiler and reinstall nnunet_ext")
    for connectivity in _CONNECTIVITIES:
        memory = {backend: peak_gigabytes(partial(prepare, backend, connectivity)) for backend in BACKENDS}
        calls = {backend: prepare(backend, connectivity) for backend in BACKENDS}
        labels = {backend: call() for backend, call in calls.items()}
        if not np.array_equal(*labels.values()):
            raise RuntimeError("the labels differ: nothing to compare")
        times = interleaved_seconds(calls, arguments.repeats, warm_up=0, clock=arguments.clock)
        for backend in BACKENDS:
            yield {
                "backend": backend,
                "kernel": library.instruction_set if backend == "extension" else "NumPy",
                "connectivity": connectivity,
                "d_h_w": " ".join(map(str, _SHAPE)),
                **FLOAT32,
                "segments": labels[backend].max(),
                **time_columns(times[backend]),
                "extra_gb": f"{memory[backend][0]:.2f}",
                "process_gb": f"{memory[backend][1]:.2f}",
            }


if __name__ == "__main__":
    run("supervoxels_cpu", rows, timing_parser(__doc__, repeats=3, threads=1))
