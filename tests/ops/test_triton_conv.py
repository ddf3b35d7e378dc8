"""The Triton kernels of the causal convolution against its reference: in Triton's interpreter, natively on a GPU."""

import importlib.util

import pytest
import torch

from nnunet_ext.ops import causal_conv1d, causal_conv1d_reference
from tests.helpers.interpreter import assert_small, interpreted, relative_errors, run_all

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton; it is not installed", allow_module_level=True)

DEFAULTS = {
    "b": 2,
    "d": 5,
    "length": 40,
    "width": 4,
    "layout": "channels last",
    "silu": True,
    "reverse": False,
    "bias": True,
    "dtype": torch.float32,
}
CASES = {
    "one step": {"length": 1},
    "shorter than the filter": {"length": 3, "reverse": True},
    "several chunks of two tiles": {"length": 530, "d": 40},
    "several chunks of two tiles, reversed": {"length": 530, "d": 40, "reverse": True},
    "channels first": {"layout": "channels first", "length": 65},
    "half of a joined projection": {"layout": "gaps", "reverse": True, "length": 33},
    "nothing optional": {"silu": False, "bias": False},
    "one tap": {"width": 1},
    "seven taps": {"width": 7, "reverse": True},
    "bfloat16": {"dtype": torch.bfloat16, "length": 300},
    "float16": {"dtype": torch.float16, "length": 300, "reverse": True},
}


def laid_out(x, layout):
    """Values (b, d, l) with other strides."""
    if layout == "channels first":
        return x.contiguous()
    by_step = x.transpose(1, 2).contiguous()
    if layout == "gaps":
        by_step = torch.cat((torch.full_like(by_step, float("nan")), by_step), -1)[..., x.shape[1] :]
    return by_step.transpose(1, 2)


def run_case(case, device):
    from nnunet_ext.ops import triton_conv

    case = DEFAULTS | case
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    x, grad_y = (normal(case["b"], case["d"], case["length"]).to(case["dtype"]) for _ in range(2))
    weight, bias = normal(case["d"], case["width"]), normal(case["d"]) if case["bias"] else None
    exact = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    filters = (*exact[1:], *([] if case["bias"] else [None]))
    y = causal_conv1d_reference(exact[0], *filters, "silu" if case["silu"] else None, case["reverse"])
    names = ("gradient of x", "gradient of weight", "gradient of bias")
    expected = dict(zip(names, torch.autograd.grad(y, exact, grad_y.double()), strict=False)) | {"y": y.detach()}
    x, grad_y = (laid_out(t, case["layout"]) for t in (x, grad_y))
    options = x, weight, bias, case["silu"], case["reverse"]
    found = {"y": triton_conv.forward(*options)}
    found |= dict(zip(names, triton_conv.backward(grad_y, *options), strict=True))
    for name in ("y", "gradient of x"):
        assert found[name].dtype == x.dtype
        assert found[name].stride() == torch.empty_like(x).stride()
        found[name] = found[name].double()
    assert all(found[name].dtype == torch.float32 for name in names[1:])
    return relative_errors(found, expected)


def run_operator(device):
    """The whole way from the public function through autograd, with weights of 16 bits."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape).to(device, torch.bfloat16) for shape in ((2, 5, 20), (5, 4), (5,))]
    exact = [t.double().requires_grad_() for t in tensors]
    expected = causal_conv1d_reference(*exact, "silu", True)
    leaves = [t.requires_grad_() for t in tensors]
    found = causal_conv1d(*leaves, "silu", True)
    gradients = torch.autograd.grad(found.double().sum(), leaves)
    assert all(g.dtype == torch.bfloat16 for g in gradients)
    return relative_errors(
        {"y": found.detach().double(), **{str(i): g.double() for i, g in enumerate(gradients)}},
        {"y": expected.detach(), **{str(i): g for i, g in enumerate(torch.autograd.grad(expected.sum(), exact))}},
    )


CHECKS = {name: (lambda device, case=case: run_case(case, device)) for name, case in CASES.items()}
CHECKS["operator"] = run_operator
ROUNDED = {"bfloat16": 8e-3, "float16": 5e-4, "operator": 8e-3}
"""Half a unit in the last place of float16, a whole one of bfloat16, whose last bits the interpreter cuts off."""


def assert_right(name, errors, tolerance):
    """Gradients of float32 weights are that exact for 16-bit inputs too."""
    of_weights = {key: error for key, error in errors.items() if "weight" in key or "bias" in key}
    assert_small(errors, ROUNDED.get(name, tolerance))
    if of_weights:
        assert_small(of_weights, tolerance)


@pytest.fixture(scope="module")
def in_the_interpreter():
    return interpreted(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_equals_the_reference_in_the_interpreter(name, in_the_interpreter):
    assert isinstance(in_the_interpreter[name], dict), in_the_interpreter[name]
    assert_right(name, in_the_interpreter[name], 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_equals_the_reference_on_the_gpu(name):
    assert_right(name, CHECKS[name](torch.device("cuda")), 1e-4)


if __name__ == "__main__":
    run_all(CHECKS)
