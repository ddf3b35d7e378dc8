"""Episodes from supervoxels, without labels."""

# The loader draws from NumPy's global generator, as nnU-Net's do.
# ruff: noqa: NPY002

import numpy as np
import pytest
import torch

from nnunet_ext.fewshot.episodes import SupervoxelEpisodes, least_area, neighbouring_slices
from nnunet_ext.supervoxels import SupervoxelParameters, cached_supervoxels
from nnunet_ext.supervoxels.preparation import make_supervoxels
from nnunet_ext.supervoxels.supervoxel_cache import SUFFIX, read_supervoxels

KEYS = ["support_images", "support_masks", "query_images", "query_masks"]


class Secret:
    """A segmentation that must not be read."""

    def __getattribute__(self, name):
        raise AssertionError("the labels were read")


class Images:
    """Preprocessed cases in memory, in the form of nnU-Net's datasets."""

    def __init__(self, **images):
        self.images = images
        self.identifiers = list(images)

    def load_case(self, identifier):
        return self.images[identifier], Secret(), None, {"spacing": [3.0, 1.0, 1.0]}


def blocks(slices=6):
    """Two bright blocks of different brightness on the dark, the second only in the first two slices."""
    image = np.zeros((1, slices, 32, 24), np.float32)
    image[0, :, 4:28, 2:22] = 100
    image[0, :2, 6:16, 6:18] = 200
    return image


@pytest.fixture
def episodes(tmp_path):
    def make(dataset, size=(32, 24), count=3, classes=1, **parameters):
        make_supervoxels(
            dataset,
            dataset.identifiers,
            tmp_path,
            spacing=lambda p: p["spacing"],
            parameters=SupervoxelParameters(**parameters),
            masked=False,
        )
        np.random.seed(0)
        return SupervoxelEpisodes(dataset, tmp_path, size, episodes=count, classes=classes)

    return make


def test_supervoxels_with_two_large_neighbouring_slices_serve():
    labels = np.zeros((4, 64, 64), np.int32)
    assert least_area((4, 64, 64)) == 16
    assert (least_area((1, 256, 256)), least_area((1, 160, 128)), least_area((1, 512, 512))) == (200, 62, 200)
    labels[0:3, :4, :4] = 1  # large in 0, 1, 2
    labels[1, 10:13, :5] = 2  # 15 pixels
    labels[[0, 2], 20:30, 20:30] = 3  # not neighbouring
    assert neighbouring_slices(labels).tolist() == [[1, 0, 1], [1, 1, 2]]
    assert neighbouring_slices(labels[:1]).tolist() == [[1, 0, 0], [3, 0, 0]]


def test_an_episode_is_one_supervoxel_in_two_neighbouring_slices(episodes, tmp_path):
    loader = episodes(Images(a=blocks()), count=40, min_size=20)
    labels = read_supervoxels(tmp_path, "a")
    assert labels.max() == 2
    batch = next(loader)
    assert list(batch) == KEYS
    assert all(batch[key].shape == (40, 1, 1, 32, 24) and batch[key].dtype == torch.float32 for key in KEYS)
    found, orders, changes = set(), set(), set()
    for i in range(40):
        kept = []
        for role in ("support", "query"):
            mask = batch[f"{role}_masks"][i, 0, 0].numpy()
            assert set(np.unique(mask)) <= {0, 1}
            exact = [(label, k) for label in (1, 2) for k in range(6) if np.array_equal(labels[k] == label, mask == 1)]
            image = batch[f"{role}_images"][i, 0, 0].numpy()
            same = [k for k in range(6) if np.allclose(image, loader.dataset.images["a"][0, k], atol=1e-3)]
            kept.append((exact, bool(same)))
        # One of the two is deformed, the other's mask is one of the volume's.
        assert sum(bool(exact) for exact, _ in kept) == 1
        found |= {label for exact, _ in kept for label, _ in exact}
        orders.add(bool(kept[0][0]))
        changes.add(tuple(same for _, same in kept))
    assert found == {1, 2}
    assert orders == {False, True}  # either may be deformed
    # The undeformed one is as it was, or its brightness was changed.
    assert changes == {(False, False), (True, False), (False, True)}


def test_supervoxels_of_the_same_two_slices_are_classes_too(episodes, tmp_path):
    """In the first two slices there are two, in the others one; a third there is never."""
    batch = next(episodes(Images(a=blocks()), count=40, classes=3, min_size=20))
    labels = read_supervoxels(tmp_path, "a")
    counts = set()
    for i in range(40):
        masks = [batch[f"{role}_masks"][i, 0].numpy() for role in ("support", "query")]
        present = np.stack([mask.any((1, 2)) for mask in masks])
        assert present[0].tolist() == present[1].tolist()
        assert not present[:, 2].any()
        counts.add(int(present[0].sum()))
        for mask in masks:
            assert mask.shape == (3, 32, 24)
            assert mask.sum(0).max() == 1  # they do not overlap
        # The undeformed one's classes are all of one slice of the volume.
        assert any(
            all(any(np.array_equal(labels[k] == label, m == 1) for label in (1, 2)) for m in mask if m.any())
            for mask in masks
            for k in range(6)
        )
    assert counts == {1, 2}


def test_large_images_are_cut_where_the_supervoxel_is(episodes):
    image = np.zeros((1, 4, 100, 90), np.float32)
    image[0, :, 60:90, 10:50] = 100
    loader = episodes(Images(a=image), size=(24, 32), count=20, min_size=20)
    batch = next(loader)
    assert batch["support_masks"].shape == (20, 1, 1, 24, 32)
    shares = batch["support_masks"].mean((1, 2, 3, 4))
    assert (shares > 0.05).all()
    assert shares.std() > 0.1  # not always in the middle


def test_an_image_of_one_slice_supports_itself(episodes):
    batch = next(episodes(Images(a=blocks(1)), min_size=20))
    assert (batch["support_masks"].sum((1, 2, 3, 4)) > 50).all()


def test_the_same_seed_gives_the_same_episodes(episodes):
    loader = episodes(Images(a=blocks(), b=blocks(4)), min_size=20)
    batches = []
    for _ in range(2):
        np.random.seed(3)
        loader.set_thread_id(0)
        batches.append(next(loader))
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in KEYS)
    loader.set_thread_id(1)
    assert not torch.equal(next(loader)["query_images"], batches[0]["query_images"])


def test_images_without_large_supervoxels_are_passed_over(episodes):
    loader = episodes(Images(a=blocks(), empty=np.zeros((1, 4, 3, 3), np.float32)), min_size=20, count=12)
    assert (next(loader)["support_masks"].sum((1, 2, 3, 4)) > 50).all()
    with pytest.raises(ValueError, match="none of the 1 training images has a supervoxel of 16 pixels in two neighb"):
        next(episodes(Images(empty=np.zeros((1, 4, 3, 3), np.float32))))


def test_masked_normalisation_leaves_the_empty_part_background(tmp_path):
    """Zeros outside the mask are brighter than much of a z-scored image."""
    image = np.full((1, 4, 20, 20), 0, np.float32)
    image[0, :, 4:16, 4:16] = np.random.default_rng(0).normal(-1, 0.3, (4, 12, 12))
    segmentation = np.where(image == 0, -1, 0)

    class Masked(Images):
        def load_case(self, identifier):
            return image, segmentation, None, {"spacing": [1.0, 1.0, 1.0]}

    found = {}
    for masked in (False, True):
        parameters = SupervoxelParameters(min_size=20)
        make_supervoxels(
            Masked(a=image),
            ["a"],
            tmp_path,
            spacing=lambda p: p["spacing"],
            parameters=parameters,
            masked=masked,
            threads=2,
        )
        found[masked] = read_supervoxels(tmp_path, "a")
    assert (found[False][:, :4] > 0).all()
    assert (found[True][segmentation[0] < 0] == 0).all()
    assert (found[True][:, 5:15, 5:15] > 0).all()


def test_reading_needs_a_whole_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no supervoxels of the case 'a'"):
        read_supervoxels(tmp_path, "a")
    labels = cached_supervoxels(blocks(), (1, 1, 1), tmp_path, "a")
    assert np.array_equal(read_supervoxels(tmp_path, "a"), labels)
    file = tmp_path / f"a{SUFFIX}"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged; delete it, and it will be remade"):
        read_supervoxels(tmp_path, "a")
