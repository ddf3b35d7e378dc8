"""Local prototypes of the features that a network has learned, by their definition."""

import pytest
import torch

from nnunet_ext.fewshot.grid_prototypes import GridPrototypes
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.head import MIN_PROBABILITY
from nnunet_ext.networks.faf_net.prototypes import masked_average_reference

SIZE, WINDOW, STRIDE = 64, 8, 4


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FAFNet(1, 2, (SIZE, SIZE), 3, (8, 16, 32), torch.nn.Conv2d, [3] * 3, [1, 2, 2], encoder="plan").eval()


def cosine(features, prototype):
    return torch.cosine_similarity(features, prototype[:, None, None], dim=0)


@torch.no_grad()
def test_probabilities_follow_the_definition(network):
    """Window by window: 8 x 8 pixels, which are 2 x 2 positions of the features."""
    images, masks = torch.randn(2, 1, SIZE, SIZE), torch.zeros(2, 2, SIZE, SIZE)
    masks[0, 0, 9:33, 8:40] = 1  # three rows of windows, the first but for one line, which is too much
    masks[1, 0, 30:33, 30:33] = 1  # no window is full of it
    masks[1, 1, :24, :24] = 1
    query = torch.randn(3, 1, SIZE, SIZE)
    local = GridPrototypes(network, projected=True)
    support = local.encode_support(images, masks)
    found = local.segment(query, type(support)(*(t.expand(3, *t.shape) for t in support)))

    features, of_query = network.encoder(images)[0], network.encoder(query)[0]
    step = WINDOW // STRIDE
    for r in range(2):
        inside, outside = [], []
        for image, mask in zip(features, masks[:, r], strict=True):
            if not mask.any():
                continue
            inside.append(masked_average_reference(image[None], mask[None, None])[0, 0])
            for i in range(SIZE // WINDOW):
                for j in range(SIZE // WINDOW):
                    share = mask[i * WINDOW : (i + 1) * WINDOW, j * WINDOW : (j + 1) * WINDOW].mean()
                    mean = image[:, i * step : (i + 1) * step, j * step : (j + 1) * step].mean((1, 2))
                    inside += [mean] * bool(share >= 0.95)
                    outside += [mean] * bool(share <= 0.05)
        assert len(inside) == 10  # 8 windows and two wholes, 9 windows and one
        for n in range(3):
            of_class = torch.stack([cosine(of_query[n], p) for p in inside]).amax(0)
            of_background = torch.stack([cosine(of_query[n], p) for p in outside]).amax(0)
            difference = torch.nn.functional.interpolate(
                (of_class - of_background)[None, None], (SIZE, SIZE), mode="bilinear", align_corners=True
            )
            torch.testing.assert_close(found[n, r], torch.sigmoid(20 * difference[0, 0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_class_that_no_slice_shows_is_nowhere(network):
    local, masks = GridPrototypes(network, projected=True), torch.zeros(1, 2, SIZE, SIZE)
    masks[0, 0, 8:40, 8:40] = 1
    image = torch.randn(1, 1, SIZE, SIZE)
    support = local.encode_support(image, masks)
    found = local.segment(image, type(support)(*(t[None] for t in support)))
    assert (found[:, 1] == MIN_PROBABILITY).all()
    assert (found[:, 0] > 0.5).any()
