import pytest
import torch

from nnunet_ext.blocks.instance_norm import instance_norm_leaky_relu, instance_norm_leaky_relu_reference
from nnunet_ext.ops import native
from nnunet_ext.ops.native import INSTRUCTION_SETS
from tests.helpers.libraries import library_for


@pytest.fixture(autouse=True, params=[*INSTRUCTION_SETS, "PyTorch"])
def variant(request, monkeypatch):
    """The C extension built for one instruction set, or none."""
    library = None if request.param == "PyTorch" else library_for(request.param)
    monkeypatch.setattr(native, "native_library", lambda: library)
    return request.param


def inputs(shape, dtype, channels_last, affine=True):
    x = torch.randn(shape, dtype=dtype) * 3 + 2
    if channels_last:
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    weight = torch.randn(shape[1], dtype=dtype, requires_grad=True) if affine else None
    bias = torch.randn(shape[1], dtype=dtype, requires_grad=True) if affine else None
    return x.requires_grad_(), weight, bias


@pytest.mark.parametrize(
    "shape", [(2, 5, 4, 6, 7), (3, 1, 5, 5, 5), (1, 40, 33, 20, 30), (2, 131, 3, 3, 3), (2, 4, 9, 11), (2, 48, 16, 9)]
)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("affine", "slope"), [(True, 0.1), (False, 0.01), (False, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_equals_its_reference_with_every_gradient(shape, channels_last, affine, slope, dtype, tolerance, assert_close):
    leaves = inputs(shape, dtype, channels_last, affine)
    # A copy, as a convolution would give it: the function may write into its input.
    fast = instance_norm_leaky_relu(leaves[0] * 1, *leaves[1:], 1e-5, slope)
    plain = instance_norm_leaky_relu_reference(*leaves, 1e-5, slope)
    assert_close(fast, plain, tolerance)
    gradient = torch.randn_like(plain)
    given = [leaf for leaf in leaves if leaf is not None]
    for a, b in zip(*(torch.autograd.grad(out, given, gradient) for out in (fast, plain)), strict=True):
        assert_close(a, b, 10 * tolerance)
    with torch.no_grad():
        assert_close(instance_norm_leaky_relu(leaves[0] * 1, *leaves[1:], 1e-5, slope), plain, tolerance)


def test_gradients_of_an_input_that_needs_none(assert_close):
    """As behind a frozen encoder: the input needs no gradient, the scale and the shift do."""
    x, weight, bias = inputs((2, 20, 4, 5, 6), torch.float32, channels_last=True)
    plain = instance_norm_leaky_relu_reference(x.detach(), weight, bias, 1e-5, 0.1)
    fast = instance_norm_leaky_relu(x.detach() * 1, weight, bias, 1e-5, 0.1)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), (weight, bias)) for out in (fast, plain)), strict=True):
        assert_close(a, b, 1e-4)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    before = torch.get_num_threads()
    x, weight, bias = inputs((2, 33, 21, 20, 19), torch.float32, channels_last=True)
    results = []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            y = instance_norm_leaky_relu(x * 1, weight, bias, 1e-5, 0.1)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_a_leaf_that_needs_a_gradient_is_not_overwritten():
    x, weight, bias = inputs((2, 3, 4, 5, 6), torch.float32, channels_last=True)
    before = x.detach().clone()
    instance_norm_leaky_relu(x, weight, bias, 1e-5, 0.1).sum().backward()
    assert torch.equal(x, before)


def test_a_large_mean_costs_no_precision(assert_close):
    x, weight, bias = inputs((1, 4, 20, 20, 20), torch.float32, channels_last=True)
    x = (x + 1000).detach()
    fast = instance_norm_leaky_relu(x * 1, weight, bias, 1e-5, 0.1)
    plain = instance_norm_leaky_relu_reference(x.double(), weight.double(), bias.double(), 1e-5, 0.1)
    assert_close(fast.double(), plain, 1e-3)


def test_parameters_that_are_views(assert_close):
    x, values = torch.randn(2, 4, 3, 5).to(memory_format=torch.channels_last), torch.randn(4, 4)
    weight, bias = values[:, 1], values[:, 2]
    with torch.no_grad():
        fast = instance_norm_leaky_relu(x.clone(memory_format=torch.preserve_format), weight, bias, 1e-5, 0.1)
    assert_close(fast, instance_norm_leaky_relu_reference(x, weight, bias, 1e-5, 0.1), 1e-5)
