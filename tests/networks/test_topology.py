import pytest
from torch import nn

from nnunet_ext.networks.topology import Topology


def create(**changes):
    arguments = {
        "conv_op": nn.Conv3d,
        "patch_size": (16, 64, 64),
        "n_stages": 4,
        "features_per_stage": (8, 16, 32, 32),
        "kernel_sizes": 3,
        "strides": [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)],
    }
    return Topology.create(**(arguments | changes))


def test_sizes_follow_the_strides():
    topology = create()
    assert topology.sizes == ((16, 64, 64), (16, 32, 32), (8, 16, 16), (4, 8, 8))
    assert topology.kernel_sizes == ((3, 3, 3),) * 4


def test_scalars_are_broadcast():
    topology = create(patch_size=32, features_per_stage=8, strides=2)
    assert topology.features == (8,) * 4
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert topology.sizes[-1] == (4, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": (16, 90, 64)}, r"`patch_size\[1\]`=90 must be divisible by 8; nearest: 88 and 96"),
        ({"patch_size": (2, 64, 64)}, r"`patch_size\[0\]`=2 must be divisible by 4; nearest: 4$"),
        ({"patch_size": (64, 64)}, r"`patch_size` must have 3 entries \(spatial axes\), got 2"),
        ({"features_per_stage": (8, 16)}, r"`features_per_stage` must have 4 entries \(stages\), got 2: \[8, 16\]"),
        ({"kernel_sizes": [3, 3]}, r"`kernel_sizes` must have 4 entries"),
        ({"kernel_sizes": [3, 3, 3, (3, 3)]}, r"`kernel_sizes\[3\]` must have 3 entries"),
        ({"kernel_sizes": 2}, r"must be odd"),
        ({"strides": [2, 2, 2, 2]}, r"`strides\[0\]`=\(2, 2, 2\) must be all 1"),
        ({"strides": [1, 2, 2, 0]}, r"`strides`=.* must be positive"),
        ({"features_per_stage": (8, 0, 8, 8)}, r"`features_per_stage`=.* must be positive"),
        ({"n_stages": 1}, r"`n_stages`=1 must be at least 2"),
        ({"conv_op": nn.Conv1d}, r"Conv1d.* is not supported; use torch.nn.Conv2d or torch.nn.Conv3d"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        create(**changes)
