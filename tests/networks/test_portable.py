"""Portable forms of the networks, which exports record, against their fast forms."""

from itertools import product

import pytest
import torch

from nnunet_ext.networks import NETWORKS
from nnunet_ext.networks.em_net import EMNet
from nnunet_ext.networks.sasan.fourier import FINE
from nnunet_ext.networks.sasan.low_band import image_spectrum
from nnunet_ext.ops.portable import portable_operators
from tests.helpers.small_networks import CASES, build, images_for

CUSTOM = "nnunet_ext::"


@pytest.mark.parametrize(("name", "case"), [*product(NETWORKS, ("2d", "3d", "odd level sizes")), ("mt_unet", "2d")])
def test_portable_form_gives_the_same_without_custom_operators(name, case, assert_close):
    network = build(name, case, input_channels=2).eval()
    x = images_for(network)
    with torch.no_grad():
        expected = network(x)
        with portable_operators("script"), torch.profiler.profile() as profile:
            found = network(x)
        assert_close(found, expected, 1e-3)  # deep levels of few voxels magnify rounding
        names = {event.name for event in profile.events()}
        assert not {n for n in names if n.startswith(CUSTOM) or "fft" in n or "complex" in n}
        assert_close(network(x), expected, 0)


@pytest.mark.parametrize("size", [(16, 16, 12), (8, 8, 6), (7, 5, 3)])
def test_low_band_in_real_arithmetic(size, assert_close):
    patch = (16, 16, 12)
    image = torch.randn(2, 2, *patch)
    fine = FINE(5, size)
    torch.nn.init.normal_(fine.mask)
    with torch.no_grad():
        expected = fine.low_band(image_spectrum(image))
        with portable_operators():
            assert_close(fine.low_band(image_spectrum(image)), expected, 1e-5)


def test_frequency_layers_in_the_authors_layout(assert_close):
    settings = CASES["2d"] | {"input_channels": 1, "num_classes": 3, "n_stages": 3, "features_per_stage": (4, 6, 8)}
    network = EMNet(**settings, efl_layout="authors").eval()
    x = images_for(network)
    with torch.no_grad():
        expected = network(x)
        with portable_operators("script"):
            assert_close(network(x), expected, 1e-5)
