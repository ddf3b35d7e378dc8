"""Kernels for other numbers of input channels and other sizes."""

import pytest
import torch
from torch import nn

from nnunet_ext.networks.adapting.tied import NotAdaptable
from nnunet_ext.weights.adapting.kernels import adapt_kernel, change_channels


def resized(kernel, module):
    return adapt_kernel(kernel, module.weight.shape, module, None)[0]


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 3), (2, 3), (2, 4), (3, 2), (4, 2), (4, 3), (3, 1)])
def test_copied_channels_have_the_same_response(old, new, assert_close):
    kernel = torch.randn(5, old, 3, 3)
    few = torch.randn(2, min(old, new), 8, 8)
    images = {n: few[:, torch.arange(n) % min(old, new)] for n in (old, new)}
    expected = nn.functional.conv2d(images[old], kernel)
    changed = change_channels(kernel, new)
    assert_close(nn.functional.conv2d(images[new], changed), expected, 1e-5)
    if new > old:
        assert_close(change_channels(changed, old), kernel, 1e-6)


def test_a_padded_kernel_is_the_same_function(assert_close):
    kernel, x = torch.randn(4, 2, 1, 3), torch.randn(1, 2, 8, 8)
    larger = resized(kernel, nn.Conv2d(2, 4, (3, 5), padding=(1, 2)))
    expected = nn.functional.conv2d(x, kernel, padding=(0, 1))
    assert_close(nn.functional.conv2d(x, larger, padding=(1, 2)), expected, 1e-5)
    assert torch.equal(resized(larger, nn.Conv2d(2, 4, (1, 3), padding=(0, 1))), kernel)


def test_a_smaller_kernel_keeps_the_response_to_a_constant_axis(assert_close):
    kernel, line = torch.randn(4, 2, 5, 5), torch.randn(1, 2, 1, 9)
    x = line.expand(1, 2, 9, 9)
    for size in (1, 3):
        smaller = resized(kernel, nn.Conv2d(2, 4, (size, 5), padding=(size // 2, 2)))
        centre = [nn.functional.conv2d(x, k, padding="same")[:, :, 4] for k in (smaller, kernel)]
        assert_close(*centre, 1e-5)


@pytest.mark.parametrize(("old", "new"), [(1, 4), (2, 4), (2, 6), (4, 2), (4, 1), (2, 3), (4, 3)])
def test_patch_embeddings_see_the_same_field(old, new, assert_close):
    """A map that is constant within the voxels of the coarser grid; for others, the mean response."""
    kernel = torch.randn(4, 2, old, old)
    changed = resized(kernel, nn.Conv2d(2, 4, new, stride=new))
    assert_close(changed.sum((2, 3)), kernel.sum((2, 3)), 1e-5)
    if new % old == 0:
        x = torch.randn(1, 2, 3 * old, 3 * old)
        finer = x.repeat_interleave(new // old, 2).repeat_interleave(new // old, 3)
        expected = nn.functional.conv2d(x, kernel, stride=old)
        assert_close(nn.functional.conv2d(finer, changed, stride=new), expected, 1e-5)
        assert_close(resized(changed, nn.Conv2d(2, 4, old, stride=old)), kernel, 1e-5)


@pytest.mark.parametrize(("old", "new"), [(2, 4), (4, 2), (1, 2), (2, 3)])
def test_upsampling_writes_the_same_values(old, new, assert_close):
    kernel = torch.randn(4, 2, old, old)
    changed = resized(kernel, nn.ConvTranspose2d(4, 2, new, stride=new))
    assert_close(changed.mean((2, 3)), kernel.mean((2, 3)), 1e-5)
    if new % old == 0:
        assert_close(changed, kernel.repeat_interleave(new // old, 2).repeat_interleave(new // old, 3), 1e-5)
        assert_close(resized(changed, nn.ConvTranspose2d(4, 2, old, stride=old)), kernel, 1e-5)


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(NotAdaptable, match="another width"):
        resized(torch.randn(4, 3, 3, 3), nn.Conv2d(2, 4, 3, padding=1))
    with pytest.raises(NotAdaptable, match="without a centre"):
        resized(torch.randn(4, 2, 2, 2), nn.Conv2d(2, 4, 3, padding=1))
