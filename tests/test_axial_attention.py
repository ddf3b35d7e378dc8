import pytest
import torch
from torch import nn

from benchmarks.plain_sasan import plain_asem
from nnunet_ext.blocks.axial_attention import ASEM, AxialAttention, attend_reference, default_heads

CASES = [((2, 3, 8, 6, 5), nn.Conv3d), ((1, 5, 7, 4, 12), nn.Conv3d), ((3, 2, 10, 12), nn.Conv2d)]


def gradients(out, inputs):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), inputs)


@pytest.mark.parametrize(("shape", "conv_op"), CASES)
def test_asem_is_the_pages_formula_with_every_gradient(shape, conv_op, assert_close):
    module = ASEM(conv_op, shape[1], shape[2:]).double()
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    leaves = [z, *module.parameters()]
    fast, plain = module(z), plain_asem(module, z)
    assert_close(fast, plain, 1e-12)
    for a, b in zip(gradients(fast, leaves), gradients(plain, leaves), strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize("length", [1, 5, 33])
def test_attend_equals_its_reference_with_every_gradient(length, assert_close):
    attention = AxialAttention(12, 4).double()
    tokens = torch.randn(7, length, 12, dtype=torch.float64, requires_grad=True)
    leaves = [tokens, *attention.parameters()]
    fast = attention(tokens)
    plain = attend_reference(tokens, 4, attention.qkv.weight, attention.out.weight, attention.out.bias)
    assert_close(fast, plain, 1e-12)
    for a, b in zip(gradients(fast, leaves), gradients(plain, leaves), strict=True):
        assert_close(a, b, 1e-10)


def test_the_form_for_other_devices_equals_the_cpu_form(monkeypatch, assert_close):
    """CUDA and MPS take scaled_dot_product_attention over whole tensors; that path runs here too."""
    import nnunet_ext.blocks.axial_attention as module

    asem = ASEM(nn.Conv3d, 2, (4, 6, 5)).double()
    z = torch.randn(2, 2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    leaves = [z, *asem.parameters()]
    here = asem(z)
    monkeypatch.setattr(module, "_MAX_BATCH", 7)
    monkeypatch.setattr(module, "_use_chunks", lambda maps: False)
    there = asem(z)
    assert_close(there, here, 1e-12)
    for a, b in zip(gradients(there, leaves), gradients(here, leaves), strict=True):
        assert_close(a, b, 1e-10)


def test_asem_agrees_with_the_authors(golden, assert_close):
    file = golden("sasan_asem")
    module = ASEM(nn.Conv3d, file.meta["in_channels"], file.meta["patch"], file.meta["heads"])
    weights = {}
    for name, value in file.state_dict.items():
        if ".to_q." in name:
            prefix = "attentions." + name.split(".")[2]
            weights[f"{prefix}.qkv.weight"] = torch.cat([value, file.state_dict[name.replace("to_q", "to_kv")]])
        elif ".to_out." in name:
            weights[f"attentions.{name.split('.')[2]}.out.{name.split('.')[-1]}"] = value
        elif name.startswith("spatial_attention"):
            weights["seg_layers.gate." + name.split(".")[-1]] = value
    module.load_state_dict(weights)
    assert_close(module(file["x"]), file["y"], 1e-4)


@pytest.mark.parametrize(("shape", "conv_op"), [((2, 5, 32, 32, 32), nn.Conv3d), ((2, 5, 64, 64), nn.Conv2d)])
def test_training_starts_near_the_identity(shape, conv_op):
    """A is about 2 and the output about z, where the default initialisation gives A of about -0.03 +- 0.10."""
    module = ASEM(conv_op, shape[1], shape[2:])
    z = torch.randn(shape)
    axial = module.axial(z)
    assert axial.mean().item() == pytest.approx(2, abs=0.2)
    assert axial.std().item() < 0.5
    ratio = (module(z) * z).sum() / (z * z).sum()
    assert 0.5 < ratio.item() < 1.5


@pytest.mark.parametrize(("length", "heads"), [(96, 16), (40, 10), (56, 14), (17, 1), (7, 7)])
def test_default_heads(length, heads):
    assert default_heads(length) == heads


def test_heads_must_divide_the_axis():
    with pytest.raises(ValueError, match=r"`heads`=5 must divide the axis length 12; its divisors: \[1, 2, 3, 4"):
        AxialAttention(12, 5)


def test_only_the_output_projection_has_a_bias():
    assert {name for name, _ in AxialAttention(8, 2).named_parameters()} == {"qkv.weight", "out.weight", "out.bias"}
