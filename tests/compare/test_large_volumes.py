"""Large volumes: time and memory of the metrics, and processes bounded by memory."""

import resource
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_ext.compare.evaluate import affordable
from nnunet_ext.compare.metrics import case_scores


def test_processes_are_bounded_by_free_memory(tmp_path):
    """A worker needs 700 MiB, and 24 bytes for each voxel of the largest map."""
    file = tmp_path / "map.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((100, 100, 100), dtype=np.uint8)), str(file))
    worker = 700 * 2**20 + 24 * 10**6
    for free, expected in ((0, 1), (worker, 1), (3 * worker, 3), (100 * worker, 8)):
        assert affordable(8, file, free) == expected
    other = tmp_path / "map.txt"
    other.write_text("no image")
    assert affordable(8, other, 2 * 700 * 2**20) == 2


@pytest.mark.slow
@pytest.mark.parametrize("shift", [2, 4, 8])
def test_a_hundred_labels_take_seconds(shift):
    """256^3 with 104 labels, moved by some voxels: at most 2 s of one core, with room for a busy machine."""
    generator, size = np.random.default_rng(0), 256
    truth = np.zeros((size,) * 3, dtype=np.uint8)
    for label in range(1, 105):
        place, extent = generator.integers(10, 200, 3), generator.integers(16, 50, 3)
        truth[tuple(slice(a, a + n) for a, n in zip(place, extent, strict=True))] = label
    labels = {str(label): label for label in range(1, 105)}
    begin = time.process_time()
    case_scores(
        truth,
        np.roll(truth, (shift, shift // 2, shift // 2), (0, 1, 2)),
        (1.0, 0.8, 0.8),
        labels=labels,
        tolerances=dict.fromkeys(labels, 2.0),
    )
    assert time.process_time() - begin < 4


@pytest.mark.slow
def test_stray_voxels_far_apart_cost_little():
    """300 x 512 x 512: at most 5 s, with room, and 1 GB more than before."""
    truth = np.zeros((300, 512, 512), dtype=np.uint8)
    truth[100:140, 200:300, 200:300] = 1
    prediction = np.roll(truth, 2, 1)
    prediction[0, 0, 0] = prediction[299, 511, 511] = 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    case_scores(truth, prediction, (1.0, 0.8, 0.8), labels={"a": 1}, tolerances={"a": 2.0})
    assert time.process_time() - begin < 10
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20
