"""Portable forms of operators against their fast forms or PyTorch's functions."""

import pytest
import torch

from nnunet_ext.blocks.real_inverse import real_inverse
from nnunet_ext.ops import causal_conv1d, real_dft, selective_scan, selective_scan_reference
from nnunet_ext.ops.portable import is_portable, portable_operators, without_autocast

NORMS = ("backward", "ortho", "forward")
SHAPES = [((2, 3, 8, 6), (2, 3)), ((2, 3, 7, 5), (2, 3)), ((2, 4, 5, 6, 3), (1, 2, 3)), ((3, 9), (1,))]
"""Even and odd lengths, and axes that are not the last."""


def pairs(spectrum):
    return torch.view_as_real(spectrum)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "axes"), SHAPES)
def test_real_transforms_are_pytorchs(shape, axes, norm, assert_close):
    x = torch.randn(shape)
    assert_close(real_dft.fftn(x, axes, norm), pairs(torch.fft.fftn(x, dim=axes, norm=norm)), 1e-6)
    assert_close(real_dft.rfftn(x, axes, norm), pairs(torch.fft.rfftn(x, dim=axes, norm=norm)), 1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "axes"), SHAPES)
def test_real_inverses_take_spectra_of_complex_maps(shape, axes, norm, assert_close):
    """Learnt filters make them; the part that no real map has is ignored."""
    whole = torch.randn(*shape, dtype=torch.complex64)
    expected = torch.fft.ifftn(whole, dim=axes, norm=norm).real
    assert_close(real_dft.real_ifftn(pairs(whole), axes, norm), expected, 1e-6)
    length = shape[axes[-1]]
    half = whole.narrow(axes[-1], 0, length // 2 + 1)
    assert_close(real_dft.irfftn(pairs(half), axes, length, norm), real_inverse(half, axes, length, norm), 1e-6)


def test_an_unknown_norm_is_an_error():
    with pytest.raises(ValueError, match="unknown `norm` 'unitary'; known: backward, ortho, forward"):
        real_dft.fftn(torch.zeros(4), (0,), "unitary")


def test_products_of_pairs(assert_close):
    a, b = torch.randn(2, 5, 3, dtype=torch.complex64).unbind(0)
    assert_close(real_dft.multiplied(pairs(a), pairs(b)), pairs(a * b), 1e-6)


def scan_tensors(b=2, d=6, length=11, n=4, groups=None):
    states = (b, n, length) if groups is None else (b, groups, n, length)
    return {
        "u": torch.randn(b, d, length),
        "delta": torch.randn(b, d, length),
        "A": -torch.rand(d, n),
        "B": torch.randn(states),
        "C": torch.randn(states),
        "D": torch.randn(d),
        "z": torch.randn(b, d, length),
        "delta_bias": torch.randn(d),
    }


@pytest.mark.parametrize("loop", ["scan", "script"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("groups", "length"), [(None, 1), (3, 11), (3, 64), (None, 131)])
def test_the_scan_in_loops_is_the_reference(loop, reverse, groups, length, assert_close):
    """131 steps are 17 segments of 8 or 9, the last one padded."""
    tensors = scan_tensors(groups=groups, length=length)
    options = {"delta_softplus": True, "return_last_state": True, "reverse": reverse}
    expected = selective_scan_reference(**tensors, **options)
    with torch.no_grad(), portable_operators(loop):
        found = selective_scan(**tensors, **options)
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, 1e-5)


def test_the_scan_needs_only_what_it_has_to(assert_close):
    tensors = scan_tensors()
    for name in ("D", "z", "delta_bias"):
        tensors[name] = None
    tensors |= {"delta": tensors["delta"].abs(), "B": torch.randn(6, 4)}
    with torch.no_grad(), portable_operators("script"):
        found = selective_scan(**tensors)
    assert_close(found, selective_scan_reference(**tensors), 1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_convolution_is_no_custom_operator(reverse, assert_close):
    x, weight, bias = torch.randn(2, 6, 11), torch.randn(6, 4), torch.randn(6)
    expected = causal_conv1d(x, weight, bias, "silu", reverse)
    with portable_operators(), torch.profiler.profile() as profile:
        found = causal_conv1d(x, weight, bias, "silu", reverse)
    assert_close(found, expected, 1e-5)
    assert not [event.name for event in profile.events() if event.name.startswith("nnunet_ext::")]


def test_the_switch_is_undone():
    def fail():
        with portable_operators(), torch.autocast("cpu", torch.bfloat16), without_autocast("cpu"):
            assert is_portable()
            assert torch.is_autocast_enabled("cpu")
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert not is_portable()
    with torch.autocast("cpu", torch.bfloat16), without_autocast("cpu"):
        assert not torch.is_autocast_enabled("cpu")
