import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain.sasan import plain_asem
from nnunet_ext.networks.sasan import axial_attention
from nnunet_ext.networks.sasan.asem import ASEM
from nnunet_ext.networks.sasan.axial_attention import AxialAttention, attend_reference, default_heads
from nnunet_ext.ops import axial_attention as operator
from nnunet_ext.ops import native
from nnunet_ext.ops.native import INSTRUCTION_SETS
from tests.helpers.libraries import library_for

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


@pytest.fixture(params=[*INSTRUCTION_SETS, "PyTorch"])
def variant(request, monkeypatch):
    """The C extension as built for one instruction set, or none."""
    library = None if request.param == "PyTorch" else library_for(request.param)
    monkeypatch.setattr(native, "native_library", lambda: library)
    assert operator.native_attention(torch.zeros(1), 4) is library
    return request.param


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize(
    ("outer", "length", "inner", "heads", "size"),
    [
        *((2, 3, 5, 4, 2), (3, 40, 2, 10, 4), (1, 56, 3, 7, 8), (2, 48, 1, 2, 6)),
        *((2, 17, 1, 1, 17), (1, 1, 4, 3, 1), (1, 33, 2, 2, 64), (1, 5, 2, 1, 65)),
        *((1, 24, 2, 2, 3), (1, 20, 1, 2, 5), (1, 9, 2, 1, 7)),
    ],
)
def test_mix_equals_its_reference_with_every_gradient(outer, length, inner, heads, size, assert_close):
    projected = 2 * torch.randn(outer, length, inner, 3, heads, size)
    exact = projected.double().requires_grad_()
    expected = operator.mix_reference(exact)
    grad_mixed = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, exact, grad_mixed)
    again, ours = operator.mix_backward(projected, grad_mixed.float())
    assert_close(operator.mix(projected).double(), expected, 3e-6)
    assert_close(again.double(), expected, 3e-6)
    assert_close(ours.double(), gradient, 1e-5)


@pytest.mark.usefixtures("variant")
def test_products_are_counted_fake_tensors_on():
    """Two of the scores, one of each projection, with a factor of two for additions, over all nine attentions."""
    with FakeTensorMode():
        asem, z = ASEM(nn.Conv3d, 3, (4, 4, 4)), torch.empty(1, 3, 4, 4, 4)
        with torch.no_grad(), FlopCounterMode(display=False) as forward:
            asem.axial(z)
        with FlopCounterMode(display=False) as step:
            asem.axial(z).sum().backward()
    tokens, lengths = 3 * 4 * 4, 3 * (3 + 4 + 4)
    out, qkv, product = (2 * tokens * n for n in (9 * 4 * 4, 9 * 4 * 12, 4 * lengths))
    assert forward.get_total_flops() == qkv + 2 * product + out
    # The backward pass recomputes q, k, v and attention. PyTorch's counter does not know `addmm_`, by which the
    # gradients of the weights are summed.
    assert step.get_total_flops() == 2 * (qkv + out) + 2 * product + (6 * product + qkv)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("elements", [1, 500, 1 << 20])
def test_asem_in_single_precision_in_chunks_of_any_size(threads, elements, monkeypatch, assert_close):
    monkeypatch.setattr(axial_attention, "_CHUNK_ELEMENTS", elements)
    module = ASEM(nn.Conv3d, 3, (8, 6, 5))
    z = torch.randn(2, 3, 8, 6, 5, requires_grad=True)
    leaves = [z, *module.parameters()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        fast, plain = module(z), plain_asem(module, z)
        gradient, expected = gradients(fast, leaves), gradients(plain, leaves)
    finally:
        torch.set_num_threads(before)
    assert_close(fast, plain, 1e-5)
    for a, b in zip(gradient, expected, strict=True):
        assert_close(a, b, 1e-4)


@pytest.mark.usefixtures("variant")
def test_what_is_no_number_stays_in_its_sequence_and_head():
    projected = torch.randn(1, 20, 2, 3, 2, 4)
    projected[0, 7, 1, 1, 0, 2] = float("nan")
    mixed = operator.mix(projected)
    assert mixed[0, :, 1, 0].isnan().all()
    assert mixed[0, :, 0].isfinite().all()
    assert mixed[0, :, :, 1].isfinite().all()


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
    """CUDA and MPS use scaled_dot_product_attention on whole tensors; this path also runs on the CPU."""
    asem = ASEM(nn.Conv3d, 2, (4, 6, 5)).double()
    z = torch.randn(2, 2, 4, 6, 5, dtype=torch.float64, requires_grad=True)
    leaves = [z, *asem.parameters()]
    here = asem(z)
    monkeypatch.setattr(axial_attention, "_MAX_BATCH", 7)
    monkeypatch.setattr(axial_attention, "_use_chunks", lambda maps: False)
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


@pytest.mark.usefixtures("variant")
def test_a_backward_pass_within_autocast(assert_close):
    module, z = ASEM(nn.Conv2d, 3, (6, 5)), torch.randn(2, 3, 6, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(z)
        inside = torch.autograd.grad(out.sum(), z, retain_graph=True)[0]
    outside = torch.autograd.grad(out.sum(), z)[0]
    assert_close(inside, outside, 2e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_logits_in_low_precision(dtype):
    """A is linear in z and the result quadratic: 300 * 300 is above what float16 holds."""
    module, z = ASEM(nn.Conv2d, 3, (6, 5)), torch.full((1, 3, 6, 5), 300.0)
    nn.init.eye_(module.attentions[0].qkv.weight[2 * 6 :].detach())
    nn.init.constant_(module.attentions[0].out.bias, 1500)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        out = module(z.to(dtype))
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert out.max() > torch.finfo(torch.float16).max
