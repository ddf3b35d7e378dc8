"""Blocks of MT-UNet."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.networks import MTUNet
from nnunet_ext.networks.mt_unet.authors_weights import ea_names, gather
from nnunet_ext.networks.mt_unet.double_conv import DoubleConv
from nnunet_ext.networks.mt_unet.gaussian_attention import (
    GaussianAxialAttention,
    gaussian_attention,
    gaussian_attention_reference,
)
from nnunet_ext.networks.mt_unet.mixed_attention import EAModule, ExternalAttention, MixedAttention
from nnunet_ext.networks.mt_unet.window_attention import (
    WindowAttention,
    WindowPool,
    from_windows,
    pad_to_windows,
    to_windows,
)
from tests.helpers.mt_unet import FROZEN, learning
from tests.helpers.small_networks import MT_UNET as SMALL


def randomise(module):
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module.double()


def gradients(y, leaves):
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad((y * weight).sum(), leaves)


@pytest.mark.parametrize("name", ["mt_unet_ea", "mt_unet_ea_padded"])
def test_ea_module_agrees_with_the_authors(name, golden, assert_close):
    file = golden(name)
    module = EAModule(file.meta["dim"], file.meta["head"], file.meta["win_size"])
    module.load_state_dict(gather(file.state_dict, ea_names("", ""), module.state_dict()))
    x = file["x"].double().unflatten(1, file.meta["tokens"]).movedim(-1, 1)
    assert_close(module.double()(x).movedim(1, -1).flatten(1, 2), file["y"].double(), 1e-6)


@pytest.mark.parametrize("size", [(7, 7), (3, 8), (5, 1), (1, 4), (1, 1), (6, 10)])
def test_gaussian_attention_equals_the_loop_with_every_gradient(size, assert_close):
    q, k, v = (torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True) for _ in range(3))
    shift = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([-0.7], dtype=torch.float64, requires_grad=True)
    fast, plain = gaussian_attention(q, k, v, shift), gaussian_attention_reference(q, k, v, shift, bias)
    assert_close(fast, plain, 1e-12)
    *expected, of_bias = gradients(plain, (q, k, v, shift, bias))
    for a, b in zip(gradients(fast, (q, k, v, shift)), expected, strict=True):
        assert (a - b).abs().max() <= 1e-11 * max(1, b.abs().max())
    assert of_bias.abs() < 1e-9


def test_gaussian_attention_looks_along_the_cross_and_near():
    attention = randomise(GaussianAxialAttention(4))
    x = torch.randn(1, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    attention(x)[0, 2, 3].sum().backward()
    seen = x.grad[0].abs().sum(-1) > 0
    cross = torch.zeros(5, 6, dtype=torch.bool)
    cross[2], cross[:, 3] = True, True
    assert torch.equal(seen, cross)
    nn.init.constant_(attention.shift, 1e4)
    v = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, -1)[2]
    assert torch.allclose(attention(x), 2 * v)


def test_gaussian_attention_starts_as_the_authors_and_freezes_what_they_do_not_use():
    attentions = [GaussianAxialAttention(4) for _ in range(200)]
    assert all(a.shift.item() >= 0 >= a.bias.item() for a in attentions)
    # The mean of |N(0, 1)|.
    assert torch.cat([a.shift - a.bias for a in attentions]).mean().item() == pytest.approx(2 * 0.798, abs=0.2)
    assert set(learning(attentions[0])) == {"qkv.weight", "qkv.bias", "shift"}
    frozen = {k for k, p in MTUNet(**SMALL).named_parameters() if not p.requires_grad}
    assert len(frozen) == 10 * len(FROZEN)
    assert all(k.endswith(FROZEN) for k in frozen)


@pytest.mark.parametrize("size", [(8, 12), (6, 6), (6, 8), (7, 5), (2, 3), (1, 3)])
def test_windows_are_taken_apart_and_put_together(size):
    x = torch.randn(2, *size, 3)
    height, width = size
    padded = pad_to_windows(x, 4)
    below, right = -height % 4, -width % 4
    assert padded.shape == (2, height + below, width + right, 3)
    assert torch.equal(padded[:, :height, :width], x)
    assert (padded[:, height:, :width] == 0).all()
    assert (padded[:, :height, width:] == 0).all()
    for i in range(below):
        for j in range(right):
            row, column = max(0, height - below + i), max(0, width - right + j)
            assert torch.equal(padded[:, height + i, width + j], x[:, row, column])
    windows = to_windows(padded, 4)
    assert torch.equal(windows[1, -1, 0, 6], padded[1, -4 + 1, 2])
    assert torch.equal(from_windows(windows, 4), padded)


def test_window_attention_is_multi_head_attention_within_a_window(assert_close):
    attention = randomise(WindowAttention(6, 2))
    windows = torch.randn(2, 3, 1, 4, 6, dtype=torch.float64)
    q, k, v = attention.qkv(windows).chunk(3, -1)
    heads = [
        ((q[..., part] @ k[..., part].transpose(-1, -2)) * 3**-0.5).softmax(-1) @ v[..., part]
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert_close(attention(windows), attention.out(torch.cat(heads, -1)), 1e-12)
    pool = randomise(WindowPool(6, 4))
    weights = pool.weigh(windows.mean(3)).softmax(-1)
    assert_close(pool(windows), (weights[..., None] * windows).sum(3), 1e-12)


def direct_mixed(module, x):
    """The page's order: upsampling, then the 1x1 convolution on [global, window] of the padded map, then cropping."""
    padded = pad_to_windows(x, module.window)
    windows = module.windows(to_windows(padded, module.window))
    near = from_windows(windows, module.window).movedim(-1, 1)
    pooled = module.pool(windows)
    q, k, v = module.axial.qkv(pooled).chunk(3, -1)
    far = gaussian_attention_reference(q, k, v, module.axial.shift, module.axial.bias).movedim(-1, 1)
    far = F.interpolate(far, scale_factor=module.window, mode="bilinear", align_corners=True)
    mixed = F.conv2d(torch.cat((far, near), 1), module.squeeze.weight[..., None, None], module.squeeze.bias)
    return mixed[:, :, : x.shape[1], : x.shape[2]].movedim(1, -1)


@pytest.mark.parametrize("size", [(8, 12), (7, 6), (9, 4), (2, 1)])
@pytest.mark.parametrize("window", [4, 2])
def test_mixed_attention_is_the_pages_formula_with_every_gradient(size, window, assert_close):
    module = randomise(MixedAttention(6, 3, window))
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    fast, plain = module(x), direct_mixed(module, x)
    assert_close(fast, plain, 1e-11)
    leaves = [x, *learning(module).values()]
    for a, b in zip(*(gradients(y, leaves) for y in (fast, plain)), strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(1, b.abs().max())


def test_external_attention_is_the_pages_formula(assert_close):
    module = randomise(ExternalAttention(6, 2))
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    heads = []
    for q in module.query(tokens).split(3, -1):
        attention = module.keys(q).softmax(1)
        heads.append(module.values(attention / (1e-9 + attention.sum(2, keepdim=True))))
    assert len(heads) == 8
    assert_close(module(tokens), module.out(torch.cat(heads, -1)), 1e-12)


def test_double_conv_is_the_pages_formula(assert_close):
    block = randomise(DoubleConv(2, 4))
    assert [k for k in block.state_dict() if k.endswith("conv.bias")] == ["shortcut.conv.bias"]
    x = torch.randn(2, 2, 6, 5, dtype=torch.float64)

    def norm(module, x):
        return F.batch_norm(x, None, None, module.weight, module.bias, training=True)

    h = F.relu(norm(block.conv1.norm, F.conv2d(x, block.conv1.conv.weight, padding=1)))
    h = norm(block.conv2.norm, F.conv2d(h, block.conv2.conv.weight, padding=1))
    residual = norm(block.shortcut.norm, F.conv2d(h, block.shortcut.conv.weight, block.shortcut.conv.bias))
    assert_close(block(x), F.relu(h + residual), 1e-12)
