"""Layers tied to the patch compute the same on another grid, as far as both grids can represent their maps."""

import pytest
import torch
from torch import nn

from nnunet_ext.networks import LSTMSA
from nnunet_ext.networks.adapting.grids import aligned, grid_like, resample, resampling
from nnunet_ext.networks.adapting.spectra import resize_full, resize_half
from nnunet_ext.networks.em_net.adapting import resize_filter
from nnunet_ext.networks.em_net.efl import EFL
from nnunet_ext.networks.faf_net.adapting import resize_filters
from nnunet_ext.networks.faf_net.adaptive_filter import FilterBranch
from nnunet_ext.networks.lstm_sa.adapting import SCORES
from nnunet_ext.networks.lstm_sa.conv_lstm import States
from nnunet_ext.networks.sasan.adapting import resize_attention, resize_mask
from nnunet_ext.networks.sasan.axial_attention import AxialAttention
from nnunet_ext.networks.sasan.fourier import FINE, image_spectrum
from nnunet_ext.networks.u_mamba.adapting import resize_channel_tokens
from nnunet_ext.networks.u_mamba.mamba_layer import MambaLayer

SIZES = [(8, 12), (8, 11), (7, 12), (7, 9), (12, 8), (11, 8), (12, 7), (9, 7)]


def seen_on(maps, size):
    """Maps (..., *P), band-limited, as another grid samples them: their spectrum, cropped or extended."""
    axes = tuple(range(-len(size), 0))
    spectrum = torch.fft.fftn(maps, dim=axes, norm="forward")
    for axis, new in zip(axes, size, strict=True):
        spectrum = resize_full(spectrum, new, axis)
    return torch.fft.ifftn(spectrum, dim=axes, norm="forward").real


def band_limited(shape, frequencies):
    """A random map (*lead, *P) with frequencies up to a limit on each axis."""
    size = shape[-len(frequencies) :]
    lead = shape[: -len(frequencies)]
    return seen_on(torch.randn(*lead, *(2 * f + 1 for f in frequencies), dtype=torch.float64), size)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resampling_keeps_what_both_grids_represent(old, new):
    r, back = resampling(old, new), resampling(new, old)
    centres = {n: (torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (old, new)}
    for k in range(min(old, new)):
        torch.testing.assert_close(r @ torch.cos(torch.pi * k * centres[old]), torch.cos(torch.pi * k * centres[new]))
    small = torch.eye(min(old, new), dtype=torch.float64)
    torch.testing.assert_close(back @ r if new > old else r @ back, small)
    if new > old:
        torch.testing.assert_close(r.T @ r, new / old * small)


def test_maps_are_resampled_along_each_axis():
    x = torch.randn(6, 5, 3)
    grid = resample(x.reshape(30, 3), (6, 5), (9, 4))
    expected = torch.einsum("ia,jb,abc->ijc", resampling(6, 9), resampling(5, 4), x.double()).float()
    torch.testing.assert_close(grid.view(9, 4, 3), expected)


@pytest.mark.parametrize(
    ("number", "like", "grid"), [(27, (6, 6, 6), (3, 3, 3)), (6, (6, 4), (3, 2)), (7, (8, 8), None)]
)
def test_grids_are_inferred_from_their_proportions(number, like, grid):
    assert grid_like(number, like) == grid


@pytest.mark.parametrize(("old", "new"), [(o, n) for o, n in SIZES if o < n])
@pytest.mark.parametrize("resize", [resize_full, resize_half])
def test_up_and_down_in_frequency_is_the_identity(old, new, resize):
    half = resize is resize_half
    filters = torch.randn(3, old // 2 + 1 if half else old, 2)
    assert torch.equal(resize(resize(filters, new, 1), old, 1), filters)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("old", "new"), [((8, 12), (12, 10)), ((7, 12), (9, 9)), ((12, 9, 8), (8, 12, 7))])
def test_masks_of_fine(old, new, levels, assert_close):
    """Level 1 and a lower level, whose band is cropped."""
    layers = []
    for size in (old, new):
        patch = tuple(levels * s for s in size)
        layers.append(FINE(4, size, patch).double())
    mask = torch.randn_like(layers[0].mask)
    layers[0].mask.data = mask
    layers[1].mask.data = resize_mask(mask, new)
    image = band_limited((2, 2, *(levels * s for s in old)), [(min(s) - 1) // 2 for s in zip(old, new, strict=True)])
    expected = seen_on(layers[0].low_band(image_spectrum(image)), new)
    there = seen_on(image, [levels * s for s in new])
    assert_close(layers[1].low_band(image_spectrum(there)), expected, 1e-10)


def test_a_mask_goes_up_and_down():
    mask = torch.randn(1, 3, 6, 5, 8)
    assert torch.equal(resize_mask(resize_mask(mask, (9, 6, 12)), (6, 5, 8)), mask)


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize(("old", "new"), [((8, 12), (11, 9)), ((4, 7, 6), (6, 6, 9))])
def test_filters_of_em_net(old, new, exchanged, assert_close):
    layers = [EFL(3, size, exchanged).double() for size in (old, new)]
    layers[1].weight.data = resize_filter(layers[0].weight.data, layers[1].size)
    limits = [(min(s) - 1) // 2 for s in zip(layers[0].size, layers[1].size, strict=True)]
    maps = band_limited((2, 3, *layers[0].size), limits)

    def filtered(layer, x):
        return layer._filter_space(x.movedim(1, -1)).movedim(-1, 1)

    expected = seen_on(filtered(layers[0], maps), layers[1].size)
    assert_close(filtered(layers[1], seen_on(maps, layers[1].size)), expected, 1e-10)


@pytest.mark.parametrize(("old", "new"), [((12, 2), (12, 3)), ((12, 2), (18, 2)), ((12, 3), (20, 4)), ((8, 8), (9, 9))])
def test_axial_attention_on_a_longer_axis(old, new, assert_close):
    before, after = AxialAttention(*old).double(), AxialAttention(*new).double()
    after.load_state_dict(resize_attention(before.state_dict(), after, before.heads))
    tokens, r = torch.randn(2, 5, old[0], dtype=torch.float64), resampling(old[0], new[0])
    exact = new[0] // new[1] >= old[0] // old[1]
    result, expected = after(tokens @ r.T), before(tokens) @ r.T
    if exact:
        assert_close(result, expected, 1e-10)
    again = AxialAttention(*old).double()
    again.load_state_dict(resize_attention(after.state_dict(), again, after.heads))
    if exact:
        for name, value in before.state_dict().items():
            assert_close(again.state_dict()[name], value, 1e-10)


def test_axial_attention_on_a_shorter_axis_is_near(assert_close):
    """The features of a head that count least are dropped: here those that read high frequencies alone."""
    before, after = AxialAttention(12, 2).double(), AxialAttention(8, 2).double()
    smooth = resampling(8, 12) @ resampling(12, 8)
    with torch.no_grad():
        before.qkv.weight.view(3, 2, 6, 12)[:, :, 4:] *= 1e-3
        before.out.weight.copy_(smooth @ before.out.weight)
    after.load_state_dict(resize_attention(before.state_dict(), after, before.heads))
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    assert_close(after(tokens), before(tokens @ resampling(8, 12).T) @ resampling(12, 8).T, 1e-2)


@pytest.mark.parametrize(("old", "new"), [((4, 3), (6, 4)), ((4, 3), (5, 3)), ((2, 3, 3), (3, 4, 3))])
def test_channel_tokens_on_a_larger_grid(old, new, assert_close):
    before, after = (MambaLayer(40, size, channel_tokens=True).double() for size in (old, new))
    with torch.no_grad():
        before.norm.weight.fill_(1.3)
        before.norm.bias.normal_()
    after.load_state_dict(resize_channel_tokens(before.state_dict(), after, old))
    x = torch.randn(2, 40, *old, dtype=torch.float64)
    expected = resample(before(x).flatten(2), old, new, axis=2)
    larger = resample(x.flatten(2), old, new, axis=2)
    assert_close(after(larger.unflatten(2, new)).flatten(2), expected, 1e-10)
    again = MambaLayer(40, old, channel_tokens=True).double()
    again.load_state_dict(resize_channel_tokens(after.state_dict(), again, new))
    for name, value in before.state_dict().items():
        assert_close(again.state_dict()[name], value, 1e-10)


@pytest.mark.parametrize(("old", "new"), [((5, 4), (7, 9)), ((8, 6), (5, 6))])
def test_adaptive_filters_are_those_of_the_old_grid(old, new, assert_close):
    """For features of the new grid, exactly what the old network computes for them."""
    before, after = (FilterBranch(6, 2, grid).double() for grid in (old, new))
    after.load_state_dict(before.state_dict() | {"down.weight": after.down.weight, "down.bias": after.down.bias})
    weight, bias = resize_filters(before.down.weight.data, before.down.bias.data, old, new)
    after.down.weight.data, after.down.bias.data = weight, bias
    features = torch.randn(2, 6, *new, dtype=torch.float64)
    assert_close(after(features), before(features), 1e-10)


def test_adaptive_filters_return_from_a_finer_grid(assert_close):
    weight, bias = torch.randn(15, 25, dtype=torch.float64), torch.randn(15, dtype=torch.float64)
    back = resize_filters(*resize_filters(weight, bias, (5, 5), (9, 9)), (9, 9), (5, 5))
    for actual, expected in zip(back, (weight, bias), strict=True):
        assert_close(actual, expected, 1e-10)


def test_aligned_interpolation_is_that_of_torch():
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    expected = nn.functional.interpolate(x, (7, 3), mode="bilinear", align_corners=True)
    torch.testing.assert_close(torch.einsum("ia,jb,ncab->ncij", aligned(5, 7), aligned(4, 3), x), expected)


@pytest.mark.parametrize("attention_size", [None, 100])
def test_scores_of_lstmsa_do_not_grow_with_the_slices(attention_size, assert_close):
    before, after = (
        LSTMSA(1, 2, size, attention_size=attention_size, features_per_stage=3).double() for size in ((8, 8), (16, 24))
    )
    state = before.state_dict()
    after.load_state_dict(state | SCORES.adapt(state, after, SCORES.geometry(before)))
    states = States(*torch.randn(4, 1, 1, 8, 8, 3, dtype=torch.float64))
    larger = States(*(s.repeat_interleave(2, 2).repeat_interleave(3, 3) for s in states))
    for old, new in zip(before.decoder.attentions, after.decoder.attentions, strict=True):
        assert_close(new(larger)[1], old(states)[1], 1e-10)
