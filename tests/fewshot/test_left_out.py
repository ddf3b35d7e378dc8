"""Setting 2: slices that show a test class train nothing."""

# Episodes draw from NumPy's global generator.
# ruff: noqa: NPY002

import numpy as np
import pytest

from nnunet_ext.fewshot.episodes import SupervoxelEpisodes
from nnunet_ext.fewshot.left_out import class_values, segmentable, slices_left_out
from tests.helpers.faf_net import small_supervoxels

SLICES = 9
LABELS = {"background": 0, "rod": 1, "ball": 2, "both": [1, 2], "ignore": 3}


class Cases:
    """A bright rod through all slices; the ball is labelled in slices 3 and 4."""

    def __init__(self, ignored=()):
        self.identifiers = ["a", "b"]
        self.images = np.zeros((1, SLICES, 24, 24), np.float32)
        self.images[0, :, 4:20, 4:20] = 100
        self.segmentation = np.zeros((1, SLICES, 24, 24), np.int16)
        self.segmentation[:, 3:5, 8:10, 8:10] = 2
        for k in ignored:
            self.segmentation[:, k, 0, 0] = 3

    def load_case(self, _):
        return self.images, self.segmentation, None, {"spacing": [3.0, 1.0, 1.0]}


def hidden(*slices):
    return [k in slices for k in range(SLICES)]


def test_slices_that_show_the_class_or_are_not_fully_labelled():
    found = slices_left_out(Cases(), ["a", "b"], [2])
    assert {case: slices.tolist() for case, slices in found.items()} == {"a": hidden(3, 4), "b": hidden(3, 4)}
    assert slices_left_out(Cases([7]), ["a"], [2], ignore=3)["a"].tolist() == hidden(3, 4, 7)
    assert slices_left_out(Cases([7]), ["a"], [1])["a"].tolist() == hidden()


@pytest.fixture
def slices_drawn(tmp_path):
    def draw(left_out, count=200):
        dataset = Cases()
        small_supervoxels(dataset, tmp_path)
        np.random.seed(0)
        episodes = SupervoxelEpisodes(dataset, tmp_path, (24, 24), left_out=left_out)
        return {tuple(int(k) for k in episodes._choose()[3]) for _ in range(count)}

    return draw


def test_no_episode_uses_a_slice_that_is_left_out(slices_drawn):
    pairs = {(k, k + 1) for k in range(SLICES - 1)}
    assert slices_drawn(None) == pairs
    left_out = slices_left_out(Cases(), ["a", "b"], [2])
    assert slices_drawn(left_out) == {pair for pair in pairs if not {3, 4} & set(pair)}


def test_where_nothing_is_left_that_is_said(slices_drawn):
    with pytest.raises(ValueError, match=r"in two neighbouring slices that are not left out: .*or leave out fewer cla"):
        slices_drawn({case: np.arange(SLICES) % 2 == 0 for case in ("a", "b")}, count=1)


def test_classes_are_labels_and_regions():
    assert segmentable(LABELS) == ["rod", "ball", "both"]
    assert class_values(LABELS, ["both", "rod"]) == {"both": (1, 2), "rod": (1,)}
    for name in ("liver", "background", "ignore"):
        with pytest.raises(ValueError, match=f"unknown class '{name}'; known: rod, ball, both"):
            class_values(LABELS, [name])
