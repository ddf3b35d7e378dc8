"""Predictions from the support alone: its mask, copied or resized, and the nearest prototypes of an encoder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.fewshot.baselines import laid_over, slices_laid_over, stretched
from nnunet_ext.fewshot.grid_prototypes import GridPrototypes
from nnunet_ext.networks.faf_net.head import MIN_PROBABILITY


def box(shape, *slices):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*ends) for ends in slices)] = True
    return mask


def test_a_mask_is_copied_voxel_by_voxel_from_the_first():
    mask = box((4, 6, 8), (1, 4), (2, 5), (3, 8))
    assert np.array_equal(laid_over(mask, (6, 5, 9)), box((6, 5, 9), (1, 4), (2, 5), (3, 8)))
    assert np.array_equal(laid_over(mask, (2, 6, 8)), box((2, 6, 8), (1, 2), (2, 5), (3, 8)))
    assert np.array_equal(laid_over(mask, mask.shape), mask)


def test_the_slices_that_are_shown_are_copied_to_their_parts():
    """An extent of slices 2 to 7 with a growing square: the middles of its thirds are 3, 5 and 7."""
    mask = np.zeros((10, 12, 12), bool)
    for k in range(2, 8):
        mask[k, :k, :k] = True
    found = slices_laid_over(mask, (9, 12, 12))
    assert found.any(2).sum(1).tolist() == [3] * 3 + [5] * 3 + [7] * 3
    assert slices_laid_over(mask, (9, 4, 12)).any(2).sum(1).tolist() == [3] * 3 + [4] * 6
    assert slices_laid_over(mask, (4, 12, 12), parts=1).any(2).sum(1).tolist() == [5] * 4
    # One slice is shown, and one is segmented, whatever the number of parts.
    assert np.array_equal(slices_laid_over(mask[4:5], (1, 12, 12)), mask[4:5])
    with pytest.raises(ValueError, match="the mask is empty"):
        slices_laid_over(mask & False, (9, 12, 12))


def test_a_column_through_all_slices_is_found_by_copying():
    mask = box((7, 20, 20), (0, 7), (4, 9), (6, 16))
    assert np.array_equal(slices_laid_over(mask, (7, 20, 20)), mask)
    assert np.array_equal(slices_laid_over(mask, (5, 20, 20)), mask[:5])


def test_a_whole_mask_is_stretched_to_the_scan():
    mask = box((4, 6, 8), (0, 4), (2, 4), (3, 7))
    assert np.array_equal(stretched(mask, (8, 12, 16)), box((8, 12, 16), (0, 8), (4, 8), (6, 14)))
    assert np.array_equal(stretched(mask, (2, 3, 8)), box((2, 3, 8), (0, 2), (1, 2), (3, 7)))
    assert np.array_equal(stretched(mask, mask.shape), mask)
    assert np.array_equal(stretched(mask[:1], (1, 12, 16)), box((1, 12, 16), (0, 1), (4, 8), (6, 14)))


class Encoder(nn.Module):
    """Features are the image's channels, averaged over 2 x 2 pixels."""

    def describe(self, images):
        return F.avg_pool2d(images, 2)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.slices_per_chunk = Encoder(), 4


def naive(query, image, mask):
    """Probability of one class by loops over windows and positions."""
    features, mask = F.avg_pool2d(image[None], 2)[0], mask.float()
    foreground = [
        (F.interpolate(features[None], mask.shape, mode="bilinear", align_corners=True)[0] * mask).mean((1, 2))
    ]
    background = []
    rows, columns = min(8, features.shape[1]), min(8, features.shape[2])

    def edges(size, parts):
        return [(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]

    windows = zip(
        *(
            [(a, b, c, d) for a, b in edges(height, rows) for c, d in edges(width, columns)]
            for height, width in (features.shape[1:], mask.shape)
        ),
        strict=True,
    )
    for (a, b, c, d), (top, bottom, left, right) in windows:
        share, prototype = mask[top:bottom, left:right].mean(), features[:, a:b, c:d].mean((1, 2))
        if share >= 0.95:
            foreground.append(prototype)
        elif share <= 0.05:
            background.append(prototype)
    of_query = F.avg_pool2d(query[None], 2)[0]
    difference = torch.empty(of_query.shape[1:])
    for position in np.ndindex(*difference.shape):
        vector = of_query[:, position[0], position[1]]
        best = [
            max((F.cosine_similarity(vector, p, dim=0) for p in kind), default=-1) for kind in (foreground, background)
        ]
        difference[position] = best[0] - best[1]
    upsampled = F.interpolate(difference[None, None], query.shape[1:], mode="bilinear", align_corners=True)[0, 0]
    return torch.sigmoid(20 * upsampled).clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)


@pytest.mark.parametrize("size", [(40, 36), (10, 8)])
def test_pixels_take_the_class_of_the_nearest_prototype(size):
    image, query = torch.rand(3, *size), torch.rand(3, *size)
    masks = torch.zeros(2, *size)
    masks[0, : size[0] // 2, 1:] = 1
    masks[1, -3:, -4:] = 1
    matcher = GridPrototypes(Network())
    for index in range(2):
        support = matcher.encode_support(image[None], masks[None, [index]])
        assert support.prototypes.shape == (*support.foreground.shape, 3)
        found = matcher.segment(query[None], type(support)(*(t[None] for t in support)))
        torch.testing.assert_close(found[0, 0], naive(query, image, masks[index]), rtol=1e-4, atol=1e-5)


def test_what_looks_like_the_label_is_found_and_its_neighbours_are_not():
    """The label is red, its surroundings are green and blue: a mean of the background would be neither."""
    image = torch.zeros(3, 32, 32)
    image[1, :, :16], image[2, :, 16:] = 1, 1
    mask = torch.zeros(1, 32, 32)
    mask[0, 8:16, 8:16] = 1
    image[:, mask[0] > 0] = torch.tensor([1.0, 0, 0])[:, None]
    query = image.flip(2).roll(4, 1)
    matcher = GridPrototypes(Network())
    support = matcher.encode_support(image[None], mask[None])
    found = matcher.segment(query[None], type(support)(*(t[None] for t in support)))[0] > 0.5
    assert 2 * (found & (mask.flip(2).roll(4, 1) > 0)).sum() / (found.sum() + mask.sum()) > 0.9


def test_slices_that_do_not_show_a_class_give_no_prototype():
    images, masks = torch.rand(2, 1, 16, 16), torch.zeros(2, 2, 16, 16)
    masks[0, 0, :8] = 1
    masks[1, 1, 8:] = 1
    support = GridPrototypes(Network()).encode_support(images, masks)
    windows = support.foreground.shape[1] // 2
    for index, other in ((0, slice(windows, None)), (1, slice(0, windows))):
        assert not support.foreground[index, other].any()
        assert not support.background[index, other].any()
        assert support.foreground[index].any()
