import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.plain.em_net import plain_efl
from nnunet_ext.blocks.channelwise import ChannelNorm, to_tokens, to_volume
from nnunet_ext.blocks.conv import ConvNormAct
from nnunet_ext.blocks.mamba import Mamba
from nnunet_ext.networks.em_net.authors_weights import csr_mamba_names, efl_names, pointwise
from nnunet_ext.networks.em_net.csr_mamba import CSRMamba
from nnunet_ext.networks.em_net.efl import EFL


def load_authors(module, names, state_dict):
    own = module.state_dict()
    own.update({ours: pointwise(state_dict[theirs], own[ours].ndim) for ours, theirs in names.items()})
    module.load_state_dict(own)
    return module.double().eval()


def randomise(module):
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module.double()


def check_against_golden(file, layer, assert_close, exchanged=False):
    x = file["x"].double().requires_grad_()
    y = layer(x)
    y = y.transpose(-1, -2) if exchanged else y
    assert_close(y, file["y"].double(), 1e-6)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    assert_close(x.grad, file["grad_x"].double(), 1e-6)


def test_csr_mamba_agrees_with_the_authors(golden, assert_close):
    file = golden("em_net_csr_mamba")
    layer = CSRMamba(nn.Conv3d, file.meta["dim"], file.meta["shape"], (3, 3, 3))
    check_against_golden(file, load_authors(layer, csr_mamba_names("", ""), file.state_dict), assert_close)


def test_efl_agrees_with_the_authors_whose_axes_stay_exchanged(golden, assert_close):
    file = golden("em_net_efl")
    layer = EFL(file.meta["dim"], file.meta["shape"], layout="authors")
    layer = load_authors(layer, efl_names("", ""), file.state_dict)
    check_against_golden(file, layer, assert_close, exchanged=True)


@pytest.mark.parametrize("size", [(4, 6, 5), (5, 3, 8), (6, 7), (8, 4)])
@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.parametrize("layout", ["spatial", "authors"])
def test_efl_is_the_pages_formula_with_every_gradient(size, exchanged, layout, assert_close):
    layer = randomise(EFL(6, size, exchanged, layout))
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    fast, plain = layer(x), plain_efl(layer, x)
    assert_close(fast, plain, 1e-12)
    weight = torch.randn_like(plain)
    leaves = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (fast, plain)), strict=True):
        assert_close(a, b, 1e-10)


def test_the_filter_of_a_second_layer_has_the_last_axes_exchanged():
    assert EFL(3, (4, 6, 10)).weight.shape == (3, 4, 6, 6, 2)
    assert EFL(3, (4, 6, 10), exchanged=True).weight.shape == (3, 4, 10, 4, 2)
    assert EFL(3, (6, 10), exchanged=True, layout="authors").weight.shape == (3, 10, 4, 2)
    assert EFL(64, (8, 8, 8)).weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_spatial_efl_moves_with_the_image_and_the_authors_does_not(assert_close):
    x = torch.randn(1, 4, 6, 6, 6, dtype=torch.float64)
    for layout in ("spatial", "authors"):
        layer = randomise(EFL(4, (6, 6, 6), layout=layout))
        moved, expected = layer(x.roll(2, 3)), layer(x).roll(2, 3)
        if layout == "spatial":
            assert_close(moved, expected, 1e-10)
        else:
            assert (moved - expected).abs().max() > 0.1


def test_unknown_layouts_list_the_known():
    with pytest.raises(ValueError, match=r"unknown `efl_layout` 'paper'; known: spatial, authors"):
        EFL(4, (4, 4, 4), layout="paper")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_mamba_norms_and_filters(dtype, assert_close):
    tokens = torch.randn(2, 24, 8)
    for module in (Mamba(8, bidirectional=True), ChannelNorm(8)):
        expected = module(tokens)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(module(tokens), expected)
    layer = EFL(8, (2, 3, 4))
    layer.mlp = nn.Identity()
    expected = layer(to_volume(tokens, (2, 3, 4)))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer(to_volume(tokens, (2, 3, 4))), expected)


def test_without_mamba_the_two_calls_are_the_identity(assert_close):
    layer = randomise(CSRMamba(nn.Conv2d, 8, (3, 5), (3, 3), mamba=False)).eval()
    assert not any("mamba" in name for name in layer.state_dict())
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    t = x.flatten(2).transpose(1, 2) + layer.pos
    n = layer.norm(t)
    y = to_volume(t + layer.gamma * (layer.norm_m(n) + layer.norm_s(layer.mlp(n))), (3, 5))
    assert_close(layer(x), y + layer.project(layer.block(y).movedim(1, -1)).movedim(-1, 1), 1e-12)


def test_csr_mamba_starts_almost_without_mamba():
    layer = CSRMamba(nn.Conv3d, 8, (2, 3, 4), (3, 3, 3))
    assert (layer.gamma == 1e-6).all()
    assert (layer.pos == 0).all()
    assert layer.pos.shape == (1, 24, 8)


def test_tokens_of_a_channels_last_map_are_a_view():
    x = torch.randn(2, 6, 3, 4, 5).to(memory_format=torch.channels_last_3d)
    tokens = to_tokens(x)
    assert tokens.data_ptr() == x.data_ptr()
    assert torch.equal(tokens[1, 7], x[1, :, 0, 1, 2])
    assert torch.equal(to_volume(tokens, (3, 4, 5)), x)
    assert torch.equal(to_tokens(x.contiguous()), tokens)


@pytest.mark.parametrize("slope", [0.01, 1])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 1, 1)])
def test_a_convolution_without_bias_and_affine_norm_has_one_parameter(kernel, slope, assert_close):
    block = ConvNormAct(nn.Conv3d, 1, 5, kernel, slope=slope, bias=False, affine=False).double()
    assert set(block.state_dict()) == {"conv.weight"}
    x = torch.randn(2, 1, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    plain = F.leaky_relu(F.instance_norm(F.conv3d(x, block.conv.weight, padding=kernel[0] // 2)), slope)
    fast = block(x)
    assert_close(fast, plain, 1e-12)
    weight = torch.randn_like(plain)
    leaves = [x, block.conv.weight]
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (fast, plain)), strict=True):
        assert_close(a, b, 1e-10)
    with torch.no_grad():
        assert_close(block(x), plain, 1e-12)
