"""The surroundings of a label compete with it."""

import numpy as np
import pytest

from nnunet_ext.fewshot.surroundings import WIDTH, surroundings


def square():
    mask = np.zeros((40, 44), bool)
    mask[18:22, 20:24] = True
    return mask


@pytest.mark.parametrize("sectors", [1, 3, 8])
def test_sectors_are_disjoint_and_cover_what_is_near(sectors):
    mask, none = square(), np.zeros((40, 44), bool)
    found = surroundings(mask, none, sectors)
    assert found.shape == (sectors, 40, 44)
    assert found.sum(0).max() == 1
    near = np.zeros_like(mask)
    voxels = np.argwhere(mask)
    for place in np.ndindex(mask.shape):
        near[place] = not mask[place] and np.sqrt(((voxels - place) ** 2).sum(1)).min() <= WIDTH
    assert np.array_equal(found.any(0), near)


def test_a_sector_is_a_direction():
    """The first of four sectors is on the upper left, the others follow clockwise."""
    found = surroundings(square(), np.zeros((40, 44), bool), 4)
    rows, columns = np.indices((40, 44)) - np.array([19.5, 21.5])[:, None, None]
    for sector, below, right in zip(found, (False, False, True, True), (False, True, True, False), strict=True):
        assert sector.any()
        assert ((rows > 0) == below)[sector].all()
        assert ((columns > 0) == right)[sector].all()


def test_other_labels_and_empty_slices_are_no_surroundings():
    mask = square()
    other = np.zeros_like(mask)
    other[:, 24:] = True
    found = surroundings(mask, other, 2)
    assert found.any()
    assert not (found & other).any()
    assert not surroundings(np.zeros_like(mask), other, 3).any()
    assert surroundings(mask, other, 0).shape == (0, 40, 44)
