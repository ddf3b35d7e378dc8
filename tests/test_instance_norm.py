import pytest
import torch

from nnunet_ext.blocks.instance_norm import instance_norm_leaky_relu, instance_norm_leaky_relu_reference


def inputs(shape, dtype, channels_last):
    x = torch.randn(shape, dtype=dtype) * 3 + 2
    if channels_last:
        x = x.to(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    weight = torch.randn(shape[1], dtype=dtype, requires_grad=True)
    bias = torch.randn(shape[1], dtype=dtype, requires_grad=True)
    return x.requires_grad_(), weight, bias


@pytest.mark.parametrize("shape", [(2, 5, 4, 6, 7), (3, 1, 5, 5, 5), (1, 40, 33, 20, 30), (2, 4, 9, 11)])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_equals_its_reference_with_every_gradient(shape, channels_last, dtype, tolerance, assert_close):
    leaves = inputs(shape, dtype, channels_last)
    # A copy, as a convolution would give it: the function may write into its input.
    fast = instance_norm_leaky_relu(leaves[0] * 1, *leaves[1:], 1e-5, 0.1)
    plain = instance_norm_leaky_relu_reference(*leaves, 1e-5, 0.1)
    assert_close(fast, plain, tolerance)
    gradient = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(out, leaves, gradient) for out in (fast, plain)), strict=True):
        assert_close(a, b, 10 * tolerance)
    with torch.no_grad():
        assert_close(instance_norm_leaky_relu(leaves[0] * 1, *leaves[1:], 1e-5, 0.1), plain, tolerance)


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
