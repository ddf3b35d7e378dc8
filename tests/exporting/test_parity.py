"""What counts as agreement between a file and its original."""

import pytest
import torch
from torch import nn

from nnunet_ext.exporting.parity import TOLERANCE, compare

TILES = [torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.fixture
def network():
    return nn.Conv2d(1, 3, 3, padding=1).eval()


def compared(network, run, regions=False):
    return compare(network, run, TILES, source="noise", regions=regions)


@pytest.mark.parametrize("regions", [False, True])
def test_the_network_agrees_with_itself(network, regions):
    parity = compared(network, network, regions)
    assert parity.passed
    assert (parity.worst.dice, parity.worst.changed) == (1, 0)
    assert parity.worst.relative_difference < 1e-6
    content = parity.as_dict()
    assert (content["number_of_tiles"], content["batch_sizes"], content["tolerance"]) == (4, [1, 3], TOLERANCE)


def test_every_tile_runs_alone_and_in_a_full_batch(network):
    sizes = []

    def run(tiles):
        sizes.append(len(tiles))
        return network(tiles)

    compared(network, run)
    assert sizes == [1, 1, 1, 1, 3, 3]


@pytest.mark.parametrize("regions", [False, True])
def test_other_logits_fail(network, regions):
    parity = compared(network, lambda tiles: 1.01 * network(tiles), regions)
    assert not parity.passed
    assert parity.worst.relative_difference == pytest.approx(0.01, rel=1e-3)
    assert parity.worst.dice == 1
    parity = compared(network, lambda tiles: -network(tiles), regions)
    assert parity.worst.dice < 1
    assert parity.worst.changed > 0


def test_a_wrong_sample_of_a_batch_fails(network):
    def shuffled(tiles):
        return network(tiles.flip(0))

    assert not compared(network, shuffled).passed


def test_values_that_are_no_numbers_fail(network):
    assert not compared(network, lambda tiles: network(tiles) * torch.nan).passed


def test_a_network_that_magnifies_rounding_is_allowed_its_own():
    """Instance norm of nearly constant maps: float32 is wrong in the third digit."""

    class Magnifying(nn.Module):
        def forward(self, x):
            return nn.functional.instance_norm(torch.cat((x, -x), 1) + 3e3, eps=1e-12)

    network = Magnifying()
    parity = compared(network, lambda tiles: network(tiles + 1e-4))
    assert TOLERANCE < parity.worst.relative_difference <= parity.tolerance
    assert parity.passed
