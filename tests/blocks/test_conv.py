import copy

import pytest
import torch
from torch import nn

from nnunet_ext.blocks.conv import conv_1x1, convolve, plus_conv_1x1
from nnunet_ext.blocks.layout import channels_last


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    ("shape", "conv"),
    [
        ((1, 9, 8, 7), nn.Conv3d(1, 6, 3, padding=1)),
        ((40, 5, 7, 5), nn.Conv3d(40, 33, (1, 3, 3), padding=(0, 1, 1), bias=False)),
        ((5, 8, 8, 4), nn.Conv3d(5, 4, 3, stride=(1, 2, 2), padding=1)),
        ((2, 12, 9), nn.Conv2d(2, 8, 3, padding=1)),
    ],
)
def test_single_samples_too_have_the_values_and_gradients_of_the_convolution(
    shape, conv, samples, onednn, monkeypatch, assert_close
):
    x = torch.randn(samples, *shape, requires_grad=True)
    leaves = [x, *conv.parameters()]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    fast = convolve(conv, x)
    gradient = torch.randn_like(fast)
    found = torch.autograd.grad(fast, leaves, gradient)
    twin = copy.deepcopy(conv).double()
    exact = twin(x.double())
    expected = torch.autograd.grad(exact, [x, *twin.parameters()], gradient.double())
    assert_close(fast.double(), exact, 1e-6)
    for a, b in zip(found, expected, strict=True):
        assert_close(a.double(), b.double(), 1e-5)
    assert fast.is_contiguous(memory_format=channels_last(x.ndim)) or samples == 2 or not onednn


@pytest.mark.parametrize("kernel", [1, 3])
def test_hooks_see_the_convolution(kernel):
    """Hooks that recompute weights, as those of spectral or weight norm, and a user's own hooks."""
    conv = nn.Conv3d(2, 3, kernel, padding=kernel // 2)
    x = torch.randn(1, 2, 4, 4, 4)
    call = conv_1x1 if kernel == 1 else convolve
    seen = []
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    result = call(conv, x)
    assert seen[0] is result


@pytest.mark.parametrize("channels_last_map", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_1x1_convolution_is_added_to_a_map(bias, channels_last_map, hooked, assert_close):
    conv = nn.Conv3d(5, 7, 1, bias=bias)
    x = torch.randn(2, 5, 8, 6, 4)[..., ::2]
    y = torch.randn(2, 7, 8, 6, 2)
    y = y.to(memory_format=channels_last(5)) if channels_last_map else y
    if hooked:
        conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    expected = y + conv(x)
    found = plus_conv_1x1(y.clone(memory_format=torch.preserve_format), conv, x, overwrite=True)
    assert found.requires_grad
    assert_close(found, expected, 1e-6)
    with torch.no_grad():
        before = y.clone(memory_format=torch.preserve_format)
        assert_close(plus_conv_1x1(y, conv, x), expected, 1e-6)
        assert torch.equal(y, before)
        found = plus_conv_1x1(y, conv, x, overwrite=True)
    assert found is y
    assert_close(y, expected, 1e-6)
