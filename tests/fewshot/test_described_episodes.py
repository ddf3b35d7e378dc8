"""Episodes of slices that a frozen encoder has described once."""

# The loader draws from NumPy's global generator, as nnU-Net's do.
# ruff: noqa: NPY002

import numpy as np
import pytest
import torch

from nnunet_ext.fewshot.described_episodes import DescribedEpisodes
from nnunet_ext.fewshot.episodes import Drawn
from tests.helpers.faf_net import build, small_supervoxels


class Images:
    """Preprocessed cases in memory, in the form of nnU-Net's datasets, and how often they were read."""

    def __init__(self, **images):
        self.images, self.identifiers, self.reads = images, list(images), 0

    def load_case(self, identifier):
        self.reads += 1
        return self.images[identifier], None, None, {"spacing": [3.0, 1.0, 1.0]}


def blocks(height=33, width=25):
    image = np.random.default_rng(0).normal(0, 3, (1, 4, height, width)).astype(np.float32)
    image[0, :, 4:28, 2:22] += 100
    image[0, :, 6:16, 6:18] += 100
    return image


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build(encoder="timm:test_resnet", encoder_frozen=True, support=False).encoder


@pytest.fixture
def episodes(tmp_path, encoder):
    def make(image, size=(33, 25), **settings):
        dataset = Images(a=image)
        small_supervoxels(dataset, tmp_path)
        dataset.reads = 0
        np.random.seed(0)
        return DescribedEpisodes(dataset, tmp_path, size, encoder=encoder, **settings)

    return make


def drawn(loader, start=(0, 0)):
    return Drawn("a", loader.labels_of("a"), np.array([1]), start)


def test_a_plain_slice_is_described_as_the_encoder_describes_it(episodes, encoder):
    loader = episodes(blocks())
    made = loader.make_slice(drawn(loader), 2, False, False)
    expected = encoder.describe(torch.from_numpy(loader.images.images["a"][:, 2][None]))[0]
    torch.testing.assert_close(made["described"], expected, rtol=2e-3, atol=2e-3)  # kept in float16
    assert np.array_equal(made["masks"][0].numpy(), loader.labels_of("a")[2] == 1)


def test_a_window_is_read_from_the_whole_slice(episodes, encoder):
    """Also beyond the slice on the axis where it is smaller."""
    loader = episodes(blocks(49, 21), size=(33, 25))
    start = (8, -2)
    made = loader.make_slice(drawn(loader, start), 1, False, False)
    padded = np.pad(loader.images.images["a"][:, 1], ((0, 0), (0, 0), (2, 2)))
    whole = encoder.describe(torch.from_numpy(padded[None]))[0]
    torch.testing.assert_close(made["described"], whole[:, 2:11], rtol=2e-3, atol=2e-3)
    labels = np.pad(loader.labels_of("a")[1], ((0, 0), (2, 2)))[8:41]
    assert np.array_equal(made["masks"][0].numpy(), labels == 1)


@pytest.mark.parametrize(("changed", "deformed"), [(True, False), (False, True), (True, True)])
def test_there_are_so_many_variants_of_each_augmentation(episodes, changed, deformed):
    loader = episodes(blocks(), variants=3)
    plain = loader.make_slice(drawn(loader), 1, False, False)
    made = [loader.make_slice(drawn(loader), 1, changed, deformed) for _ in range(40)]
    different = {m["described"].numpy().tobytes() for m in made}
    assert len(different) == 3
    assert plain["described"].numpy().tobytes() not in different
    assert len({m["masks"].numpy().tobytes() for m in made}) == (3 if deformed else 1)
    assert loader.images.reads == 4


def test_masks_are_deformed_as_the_image(episodes, encoder):
    """An image that is a supervoxel: the deformed supervoxel is the deformed image, but for its edge."""
    loader = episodes(blocks())
    labels = loader.labels_of("a")
    loader.images.images["a"] = (labels[None] == 1).astype(np.float32)
    seen = []
    loader.encoder.maps, original = lambda image: seen.append(image) or original(image), encoder.maps
    try:
        loader.make_slice(drawn(loader), 1, False, True)
    finally:
        del loader.encoder.maps
    (kept,) = loader.described.values()
    assert ((seen[0][0, 0].numpy() > 0.5) == (kept.labels == 1)).mean() > 0.98
    assert (kept.labels != labels[1]).any()


def test_episodes_have_the_shapes_of_images_and_repeat_nothing(episodes, encoder):
    loader = episodes(blocks(), episodes=3, classes=2, variants=1)
    batch = next(loader)
    width = encoder.backbone.width
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        **dict.fromkeys(("support_described", "query_described"), (3, 1, width, 9, 7)),
        **dict.fromkeys(("support_masks", "query_masks"), (3, 1, 2, 33, 25)),
    }
    assert all(v.dtype == torch.float32 for v in batch.values())
    for _ in range(60):
        next(loader)
    assert loader.images.reads == len(loader.described) == 16  # 4 slices: plain, gamma, deformed, both


def test_memory_is_bounded(episodes):
    loader = episodes(blocks(), variants=50, gigabytes=2e-4)
    for _ in range(30):
        next(loader)
        assert loader.nbytes == sum(d.nbytes for d in loader.described.values()) <= 2e5
    assert loader.images.reads > len(loader.described) > 1


def test_described_episodes_give_the_losses_of_their_images(encoder):
    network = build(encoder="timm:test_resnet", encoder_frozen=True, support=False).train()
    images = torch.randn(2, 2, 1, 33, 25)
    masks = (torch.rand(2, 2, 2, 33, 25) > 0.7).float()
    masks[0, 0, 1] = masks[0, 1, 1] = 0
    results = []
    for described in (False, True):
        given = images
        if described:
            given = network.encoder.describe(images.flatten(0, 1)).unflatten(0, (2, 2))
        network.zero_grad()
        episode = network(given[:, 1:], given[:, :1], masks[:, :1], masks[:, 1:], described=described)
        losses = [episode.query_loss, episode.alignment_loss, episode.prototype_loss]
        sum(losses).backward()
        results.append([*losses, *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="described episodes need `query_masks`"):
        network(given[:, 1:], given[:, :1], masks[:, :1], described=True)
