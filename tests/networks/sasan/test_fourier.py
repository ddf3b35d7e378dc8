from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunet_ext.networks.sasan.fourier import FINE, gate, gate_reference
from nnunet_ext.networks.sasan.low_band import (
    crop_spectrum,
    fold_mask,
    image_spectrum,
    low_band,
    low_band_reference,
    unfold_mask,
)

SIZES = [
    ((8, 8, 8), (8, 8, 8)),
    ((8, 8, 8), (4, 4, 4)),
    ((9, 6, 10), (9, 3, 5)),  # odd level sizes
    ((12, 12, 7), (6, 4, 7)),
    ((8, 8, 5), (4, 4, 1)),
    ((16, 64, 64), (16, 32, 16)),  # anisotropic
    ((10, 12), (5, 6)),
    ((7, 9), (7, 9)),
]


def spectrum_level(patch, size, modalities=1, batch=3, dtype=torch.float64):
    image = torch.randn(batch, modalities, *patch, dtype=dtype)
    return image, crop_spectrum(image_spectrum(image), size)


def low_band_by_the_page(mask, image, size):
    """SASAN.md's formula with shifts, masks in the shifted order, and the amplitude-preserving factor."""
    axes = tuple(range(2, image.ndim))
    shifted = torch.fft.fftshift(torch.fft.fftn(image, dim=axes), dim=axes)
    for axis, new in zip(axes, size, strict=True):
        start = shifted.shape[axis] // 2 - new // 2
        shifted = shifted.narrow(axis, start, new)
    modality = torch.arange(mask.shape[0]) % image.shape[1]
    low = torch.fft.ifftn(torch.fft.ifftshift(mask * shifted[:, modality], dim=axes), dim=axes).real
    return low * prod(size) / prod(image.shape[2:])


@pytest.mark.parametrize(("patch", "size"), SIZES)
@pytest.mark.parametrize("modalities", [1, 2])
def test_low_band_is_the_pages_formula(patch, size, modalities, assert_close):
    image, spectrum = spectrum_level(patch, size, modalities)
    shifted_mask = torch.randn(5, *size, dtype=torch.float64)
    axes = tuple(range(1, shifted_mask.ndim))
    stored = fold_mask(torch.fft.ifftshift(shifted_mask, dim=axes)[None])
    assert_close(low_band(stored, spectrum, patch == size), low_band_by_the_page(shifted_mask, image, size), 1e-12)


@pytest.mark.parametrize(("patch", "size"), SIZES)
@pytest.mark.parametrize("modalities", [1, 2])
@pytest.mark.parametrize("slab", [1, 100, 1 << 18])
def test_low_band_equals_its_reference_with_gradient(patch, size, modalities, slab, monkeypatch, assert_close):
    monkeypatch.setattr("nnunet_ext.networks.sasan.low_band._SLAB_ELEMENTS", slab)
    _, spectrum = spectrum_level(patch, size, modalities)
    mask = torch.randn(1, 5, *size, dtype=torch.float64, requires_grad=True)
    fast, plain = low_band(mask, spectrum, patch == size), low_band_reference(mask, spectrum)
    assert_close(fast, plain, 1e-12)
    gradient = torch.randn_like(fast)
    assert_close(*(torch.autograd.grad(out, mask, gradient)[0] for out in (fast, plain)), 1e-12)


def test_low_band_passes_gradients_to_the_image():
    image = torch.randn(1, 1, 6, 5, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(1, 2, 3, 5, 2, dtype=torch.float64, requires_grad=True)

    def run(image, mask):
        return low_band(mask, crop_spectrum(image_spectrum(image), (3, 5, 2)), False)

    assert torch.autograd.gradcheck(run, (image, mask))


def test_ones_keep_the_amplitude_of_a_constant_image():
    spectrum = crop_spectrum(image_spectrum(torch.full((1, 1, 8, 8, 8), 3.0)), (4, 4, 4))
    low = low_band(torch.ones(1, 2, 4, 4, 4), spectrum, False)
    torch.testing.assert_close(low, torch.full((1, 2, 4, 4, 4), 3.0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=3), st.integers(1, 3))
def test_folding_masks_is_undone(size, channels):
    mask = torch.randn(1, channels, *size)
    assert torch.equal(unfold_mask(fold_mask(mask)), mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gate_equals_its_reference_with_gradients(dtype, assert_close):
    leaves = [torch.randn(2, 3, 4, 5, 6, dtype=dtype, requires_grad=True) for _ in range(2)]
    leaves.append(torch.tensor(0.3, dtype=dtype, requires_grad=True))
    fast, plain = gate(*leaves), gate_reference(*leaves)
    assert_close(fast, plain, 1e-6)
    gradient = torch.randn_like(fast)
    for a, b in zip(*(torch.autograd.grad(out, leaves, gradient) for out in (fast, plain)), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gate_keeps_the_memory_layout_of_the_map(layout):
    x = torch.randn(2, 4, 3, 5, 6).contiguous(memory_format=layout)
    low = torch.randn(2, 4, 3, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert gate(x, low, torch.tensor(0.5)).stride() == x.stride()


def test_gate_stays_within_float16():
    x = torch.full((1, 2, 2, 2), 1000.0, dtype=torch.float16).requires_grad_()
    gated = gate(x, torch.zeros(1, 2, 2, 2), torch.tensor(0.5))
    gated.mean().backward()
    assert (gated == torch.finfo(torch.float16).max).all()
    assert (x.grad > 0).all()


def test_fine_agrees_with_the_authors(golden, assert_close):
    file = golden("sasan_fine")
    size = tuple(file.meta["level_shape"])
    fine = FINE(file.meta["channels"], size)
    mask = torch.fft.ifftshift(file.state_dict["mask"], dim=(2, 3, 4)).roll(file.meta["channels"] // 2, 1)
    fine.load_state_dict(
        {"mask": fold_mask(mask) * prod(file.meta["patch"]) / prod(size), "rate": file.state_dict["rate"]}
    )
    low = fine.low_band(image_spectrum(file["image"]))
    rate = fine.rate
    assert_close(rate * file["x"] + (1 - rate) * low, file["y"], 1e-4)
    assert_close(fine(file["x"], image_spectrum(file["image"])), file["y"] * file["x"], 1e-4)
