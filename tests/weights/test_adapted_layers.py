"""Layers tied to the patch compute the same on another grid, as far as both grids can represent their maps."""

import pytest
import torch
from torch import nn

from nnunet_ext.networks import LSTMSA
from nnunet_ext.networks.adapting.grids import aligned, grid_like, resample, resampling
from nnunet_ext.networks.adapting.spectra import resize_half_spectrum, resize_spectrum
from nnunet_ext.networks.adapting.tied import Origin
from nnunet_ext.networks.em_net.adapting import TIED as EM_NET
from nnunet_ext.networks.em_net.efl import EFL
from nnunet_ext.networks.faf_net.adapting import resize_filters
from nnunet_ext.networks.faf_net.adaptive_filter import FilterBranch
from nnunet_ext.networks.lstm_sa.adapting import SCORES
from nnunet_ext.networks.lstm_sa.conv_lstm import States
from nnunet_ext.networks.sasan.adapting import resize_attention, resize_mask
from nnunet_ext.networks.sasan.axial_attention import AxialAttention
from nnunet_ext.networks.sasan.fourier import FINE
from nnunet_ext.networks.sasan.low_band import image_spectrum
from nnunet_ext.networks.u_mamba.adapting import resize_channel_tokens
from nnunet_ext.networks.u_mamba.mamba_layer import MambaLayer

SIZES = [(8, 12), (8, 11), (7, 12), (7, 9), (12, 8), (11, 8), (12, 7), (9, 7)]


def seen_on(maps, size):
    """Maps (..., *P), band-limited, as another grid over the same field of view samples them."""
    axes = tuple(range(-len(size), 0))
    spectrum = torch.view_as_real(torch.fft.fftn(maps, dim=axes, norm="forward"))
    spectrum = resize_spectrum(spectrum, [axis - 1 for axis in axes], size, [1] * len(size))
    return torch.fft.ifftn(torch.view_as_complex(spectrum.contiguous()), dim=axes, norm="forward").real


def repeated(maps, times):
    """Maps (..., *P), so many times along each axis."""
    return maps.repeat(*(1,) * (maps.ndim - len(times)), *times)


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
@pytest.mark.parametrize("same", ["field of view", "voxels"])
def test_up_and_down_in_frequency_is_the_identity(old, new, same):
    up = 1 if same == "field of view" else new / old
    filters = torch.randn(3, old, 2)
    back = resize_spectrum(resize_spectrum(filters, [1], [new], [up]), [1], [old], [1 / up])
    torch.testing.assert_close(back, filters, rtol=0, atol=0 if up == 1 else 1e-5)
    half = torch.randn(3, 5, old // 2 + 1, 2)
    there = resize_half_spectrum(half, (5, old), (5, new), (1, up))
    back = resize_half_spectrum(there, (5, new), (5, old), (1, 1 / up))
    inner = slice(0 if up == 1 else 1, old // 2 + (up == 1))  # the others may have parts without an effect
    torch.testing.assert_close(back[:, :, inner], half[:, :, inner], rtol=0, atol=0 if up == 1 else 1e-5)


def test_frequencies_beyond_the_old_ones_are_zero():
    filters = torch.ones(1, 8)
    assert resize_spectrum(filters, [1], [12], [1])[0].tolist() == [1] * 5 + [0] * 3 + [1] * 4
    torch.testing.assert_close(resize_spectrum(filters, [1], [12], [1.5]), torch.ones(1, 12))


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("old", "new"), [((8, 12), (12, 10)), ((7, 12), (9, 9)), ((12, 9, 8), (8, 12, 7))])
def test_masks_of_fine_in_other_voxels(old, new, levels, assert_close):
    """Level 1 and a lower level, whose band is cropped."""
    before, after = fines(old, new, zoom=[1] * len(old))
    limits = [(min(s) - 1) // 2 for s in zip(old, new, strict=True)]
    image = band_limited((2, 2, *(levels * s for s in old)), limits)
    expected = seen_on(before.low_band(image_spectrum(image)), new)
    there = seen_on(image, [levels * s for s in new])
    assert_close(after.low_band(image_spectrum(there)), expected, 1e-10)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(
    ("old", "new"), [((4, 6), (8, 6)), ((3, 4), (6, 12)), ((6, 9, 8), (6, 3, 4)), ((5, 3), (5, 9))]
)
def test_masks_of_fine_in_another_patch(old, new, levels, assert_close):
    """An image that repeats that of the shorter patch. Level 1 and a lower level, whose band is cropped."""
    before, after = fines(old, new, zoom=[n / o for o, n in zip(old, new, strict=True)])
    shorter = [min(s) for s in zip(old, new, strict=True)]
    limits = [(s - 1) // 2 for s in shorter]
    image = band_limited((2, 2, *(levels * s for s in shorter)), limits)
    times = {size: [s // o for s, o in zip(size, shorter, strict=True)] for size in (old, new)}
    low = {
        size: fine.low_band(image_spectrum(repeated(image, times[size])))
        for size, fine in ((old, before), (new, after))
    }
    # Of one period each.
    first = (..., *(slice(s) for s in shorter))
    assert_close(low[new][first], low[old][first], 1e-10)


def fines(old, new, zoom):
    """A layer with a random mask, and one for another grid."""
    before, after = (FINE(4, size).double() for size in (old, new))
    before.mask.data = torch.randn_like(before.mask)
    after.mask.data = resize_mask(before.mask.data, new, zoom)
    return before, after


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize(("old", "new"), [((8, 12), (11, 9)), ((4, 7, 6), (6, 6, 9))])
def test_filters_of_em_net_in_other_voxels(old, new, exchanged, assert_close):
    before, after, adapted = efls(old, new, exchanged, zoom=(1,) * len(old))
    after.weight.data = adapted
    limits = [(min(s) - 1) // 2 for s in zip(before.size, after.size, strict=True)]
    maps = band_limited((2, 3, *before.size), limits)
    assert_close(filtered(after, seen_on(maps, after.size)), seen_on(filtered(before, maps), after.size), 1e-10)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize(
    ("old", "new"), [((4, 6), (8, 12)), ((6, 4), (3, 8)), ((3, 4, 6), (6, 4, 9)), ((5, 9), (5, 3))]
)
def test_filters_of_em_net_in_another_patch(old, new, exchanged, known, assert_close):
    """Maps that repeat those of the shorter patch, where the longer one is a multiple of it."""
    zoom = tuple(n / o for o, n in zip(old, new, strict=True)) if known else None
    before, after, adapted = efls(old, new, exchanged, zoom)
    after.weight.data = adapted
    shorter = [min(s) if max(s) % min(s) == 0 else 1 for s in zip(before.size, after.size, strict=True)]
    maps = torch.randn(2, 3, *shorter, dtype=torch.float64)
    results = [
        filtered(layer, repeated(maps, [s // o for s, o in zip(layer.size, shorter, strict=True)]))
        for layer in (before, after)
    ]
    first = (..., *(slice(s) for s in shorter))
    assert_close(results[1][first], results[0][first], 1e-10)


def efls(old, new, exchanged, zoom):
    """A layer over space, one for another grid, and the adapted filter for it."""
    before, after = (EFL(3, size, exchanged).double() for size in (old, new))
    tied = EM_NET[EFL]
    adapted = tied.adapt(before.state_dict(), after, Origin(tied.geometry(before), zoom))
    return before, after, adapted["weight"]


def filtered(layer, maps):
    return layer._filter_space(maps.movedim(1, -1)).movedim(-1, 1)


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
    after.load_state_dict(state | SCORES.adapt(state, after, Origin(SCORES.geometry(before))))
    states = States(*torch.randn(4, 1, 1, 8, 8, 3, dtype=torch.float64))
    larger = States(*(s.repeat_interleave(2, 2).repeat_interleave(3, 3) for s in states))
    for old, new in zip(before.decoder.attentions, after.decoder.attentions, strict=True):
        assert_close(new(larger)[1], old(states)[1], 1e-10)
