"""The Triton kernels against the reference: in Triton's interpreter on any machine, natively where there is a GPU.

One subprocess, this file as a script, runs every case in the interpreter.
"""

import importlib.util
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from nnunet_ext.ops.reference import selective_scan_reference
from tests.helpers.interpreter import assert_small, interpreted, relative_errors, run_all

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs triton; it is not installed", allow_module_level=True)

GOLDEN = Path(__file__).parents[1] / "golden" / "selective_scan.npz"
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
ALL = {"D", "z", "delta_bias"}

# Defaults of a case; `chunks` None leaves the choice to the plan, `delta` is the mean step size before softplus.
DEFAULTS = {
    "b": 1,
    "d": 5,
    "n": 3,
    "groups": 1,
    "length": 40,
    "optional": ALL,
    "softplus": True,
    "reverse": False,
    "layout": "channels last",
    "last": True,
    "chunks": None,
    "delta": 0.0,
}
CASES = {
    "one step": {"length": 1},
    "two steps": {"length": 2, "reverse": True},
    "odd length": {"length": 63},
    "several chunks": {"length": 128, "chunks": (64,), "n": 2, "b": 2},
    "several chunks reversed, ragged": {"length": 83, "chunks": (32,), "reverse": True},
    "several chunks, no gradient of the last state": {"length": 83, "chunks": (32,), "last": False, "n": 1},
    "1000 steps": {"length": 1000, "chunks": (256,), "n": 1, "d": 3, "reverse": True, "optional": set()},
    "nothing optional": {"optional": set(), "softplus": False, "last": False, "length": 19},
    "only D": {"optional": {"D"}, "length": 19, "reverse": True},
    "only z": {"optional": {"z"}, "length": 19},
    "only bias, no softplus": {"optional": {"delta_bias"}, "softplus": False, "length": 19},
    "channels first": {"layout": "channels first", "length": 21, "b": 2},
    "views with gaps": {"layout": "gaps", "length": 21, "b": 2},
    "two tiles": {"d": 40, "length": 9},
    "groups": {"d": 6, "groups": 3, "length": 9, "layout": "channels first"},
    "groups of two tiles": {"d": 70, "groups": 2, "length": 9, "reverse": True, "b": 2},
    "one channel": {"d": 1, "length": 18, "layout": "channels first"},
    "16 states": {"n": 16, "length": 20, "reverse": True},
    "8 states, ragged, not aligned": {"n": 8, "length": 83, "chunks": (48,), "layout": "gaps"},
    "18 states, in two launches": {"n": 18, "length": 36, "reverse": True},
    "18 states, chunks, nothing optional": {"n": 18, "length": 37, "chunks": (32,), "optional": set()},
    "small steps": {"delta": -9.0, "optional": set(), "length": 20},
    "large steps": {"delta": 30.0, "length": 20},
}
# Too slow for the interpreter.
LARGE = {
    "4096 steps": {"b": 2, "d": 96, "n": 16, "length": 4096},
    "4096 steps reversed": {"b": 2, "d": 96, "n": 16, "length": 4096, "reverse": True},
    "ragged": {"b": 2, "d": 200, "n": 16, "length": 1999, "groups": 2, "layout": "channels first"},
    "wide": {"b": 2, "d": 768, "n": 16, "length": 64},
    "40 states": {"b": 2, "d": 48, "n": 40, "length": 500},
}


def laid_out(x, layout):
    """The same values with other strides."""
    if layout == "channels first":
        return x.contiguous()
    if layout == "channels last":
        return x.movedim(-1, 1).contiguous().movedim(1, -1)
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), float("nan"), dtype=x.dtype, device=x.device)
    view = wide[..., 1::2]
    view.copy_(x)
    return view


def evaluate(inputs, grad_y, grad_last, softplus, reverse):
    """Triton's results for float32 inputs: y, last state and every gradient by name."""
    from nnunet_ext.ops import triton_scan

    b, d, length = inputs["u"].shape
    y, state, saved = triton_scan.forward(*inputs.values(), softplus, reverse, True)
    assert y.stride() == torch.empty_like(inputs["u"]).stride()
    assert saved.shape == triton_scan.saved_shape(b, d, inputs["A"].shape[1], length)
    assert saved.numel() <= inputs["u"].numel()
    gradients = triton_scan.backward(grad_y, grad_last, *inputs.values(), saved, softplus, reverse)
    results = {"y": y, "last state": state}
    for name, gradient in zip(NAMES, gradients, strict=True):
        assert (gradient is None) == (inputs[name] is None), name
        if gradient is not None:
            assert gradient.stride() == torch.empty_like(inputs[name]).stride(), name
            results[f"gradient of {name}"] = gradient
    return results


def reference(inputs, grad_y, grad_last, softplus, reverse):
    leaves = {name: None if x is None else x.double().requires_grad_() for name, x in inputs.items()}
    y, last = selective_scan_reference(*leaves.values(), softplus, True, reverse)
    outputs, gradients = ([y], [grad_y]) if grad_last is None else ([y, last], [grad_y, grad_last])
    leaves = {name: x for name, x in leaves.items() if x is not None}
    found = torch.autograd.grad(outputs, list(leaves.values()), [g.double() for g in gradients])
    names = [f"gradient of {name}" for name in leaves]
    return {"y": y.detach(), "last state": last.detach()} | dict(zip(names, found, strict=True))


def errors_of(actual, expected):
    assert all(actual[name].dtype == torch.float32 for name in expected)
    return relative_errors(actual, expected)


def run_case(case, device):
    from nnunet_ext.ops import triton_scan

    case = DEFAULTS | case
    generator = torch.Generator().manual_seed(0)
    b, d, n, g, length = (case[key] for key in ("b", "d", "n", "groups", "length"))

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(device)

    delta = normal(b, d, length) * 0.5 + case["delta"]
    inputs = {
        "u": normal(b, d, length),
        "delta": delta if case["softplus"] else delta.abs(),
        "A": -normal(d, n).abs() - 0.05,
        "B": normal(b, g, n, length),
        "C": normal(b, g, n, length),
        "D": normal(d),
        "z": normal(b, d, length),
        "delta_bias": normal(d).abs() * 0.3,
    }
    for name in ALL - case["optional"]:
        inputs[name] = None
    grad_y = normal(b, d, length)
    grad_last = normal(b, d, n) if case["last"] else None
    flags = case["softplus"], case["reverse"]
    expected = reference(inputs, grad_y, grad_last, *flags)
    for name in ("u", "delta", "B", "C", "z"):
        if inputs[name] is not None:
            inputs[name] = laid_out(inputs[name], case["layout"])
    with patch.object(triton_scan, "CHUNKS", case["chunks"] or triton_scan.CHUNKS):
        return errors_of(evaluate(inputs, laid_out(grad_y, case["layout"]), grad_last, *flags), expected)


def run_golden(device):
    from nnunet_ext.ops import triton_scan

    arrays = np.load(GOLDEN)
    inputs = {name: torch.from_numpy(arrays[name]).to(device).float() for name in NAMES}
    inputs |= {name: inputs[name][:, None] for name in "BC"}
    y = torch.from_numpy(arrays["y"]).to(device)
    grad_y = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(device)
    expected = {f"gradient of {name}": torch.from_numpy(arrays[f"grad_{name}"]).to(device) for name in NAMES}
    expected |= {f"gradient of {name}": expected[f"gradient of {name}"][:, None] for name in "BC"}
    with patch.object(triton_scan, "CHUNKS", (256,)):  # one, for the interpreter's time
        return errors_of(evaluate(inputs, grad_y.float(), None, True, False), expected | {"y": y})


def run_constant_gradient(device):
    """The gradient that y.sum() gives, a single number seen as (b, d, l), and outputs without saved states."""
    from nnunet_ext.ops import triton_scan

    torch.manual_seed(0)
    shapes = {"u": (2, 3, 20), "delta": (2, 3, 20), "A": (3, 2), "B": (2, 1, 2, 20), "C": (2, 1, 2, 20)}
    inputs = {name: torch.randn(shape).to(device) for name, shape in shapes.items()} | dict.fromkeys(NAMES[5:])
    inputs["A"] = -inputs["A"].abs()
    grad_y = torch.ones((), device=device).expand(2, 3, 20)
    results = evaluate(inputs, grad_y, None, True, False)
    y, state, saved = triton_scan.forward(*inputs.values(), True, False, False)
    assert saved.shape == (0,)
    assert torch.equal(y, results["y"])
    assert torch.equal(state, results["last state"])
    return errors_of(results, reference(inputs, grad_y, None, True, False))


def run_nan(device):
    """Fractions of NaN where NaN must be and where it must not: it reaches what depends on it, and nothing else."""
    from nnunet_ext.ops import triton_scan

    found = {}
    for poisoned in ("u", "delta", "B", "z"):
        torch.manual_seed(0)
        shapes = {"u": (1, 3, 20), "delta": (1, 3, 20), "A": (3, 2), "B": (1, 1, 2, 20), "C": (1, 1, 2, 20)}
        inputs = {name: torch.randn(shape).to(device) for name, shape in shapes.items()}
        inputs |= {"D": None, "z": torch.randn(1, 3, 20).to(device), "delta_bias": None}
        inputs["A"] = -inputs["A"].abs()
        inputs[poisoned][0, 0, ..., 9] = float("nan")
        y, last, _ = triton_scan.forward(*inputs.values(), True, False, False)
        channels = slice(None) if poisoned == "B" else slice(0, 1)
        steps = slice(9, 10) if poisoned == "z" else slice(9, None)
        expected = torch.zeros_like(y, dtype=torch.bool)
        expected[:, channels, steps] = True
        wrong = (y.isnan() != expected).sum() + (last.isnan().any(2) != (expected[:, :, -1])).sum()
        found[f"wrong places after NaN in {poisoned}"] = float(wrong)
    return found


def run_operator(device):
    """The whole way from the public function through autograd."""
    from nnunet_ext.ops import selective_scan

    torch.manual_seed(0)
    shapes = {"u": (2, 5, 20), "delta": (2, 5, 20), "A": (5, 3), "B": (2, 3, 20), "C": (2, 3, 20), "D": (5,)}
    inputs = {name: torch.randn(shape).to(device) for name, shape in shapes.items()} | dict.fromkeys(NAMES[6:])
    inputs["A"] = -inputs["A"].abs()
    grad_y, grad_last = torch.randn(2, 5, 20).to(device), torch.randn(2, 5, 3).to(device)
    expected = reference(inputs, grad_y, grad_last, True, True)
    leaves = {name: x.requires_grad_() for name, x in inputs.items() if x is not None}
    y, last = selective_scan(**leaves, delta_softplus=True, return_last_state=True, reverse=True, backend="triton")
    found = torch.autograd.grad([y, last], list(leaves.values()), [grad_y, grad_last])
    actual = {f"gradient of {name}": x for name, x in zip(leaves, found, strict=True)}
    return errors_of(actual | {"y": y.detach(), "last state": last.detach()}, expected)


CHECKS = {name: (lambda device, case=case: run_case(case, device)) for name, case in CASES.items()} | {
    "golden file": run_golden,
    "constant gradient": run_constant_gradient,
    "NaN": run_nan,
    "operator": run_operator,
}


@pytest.fixture(scope="module")
def in_the_interpreter():
    return interpreted(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_equals_the_reference_in_the_interpreter(name, in_the_interpreter):
    assert_small(in_the_interpreter[name], 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CHECKS, *LARGE])
def test_equals_the_reference_on_the_gpu(name):
    device = torch.device("cuda")
    assert_small(CHECKS[name](device) if name in CHECKS else run_case(LARGE[name], device), 1e-4)


@pytest.mark.gpu
def test_gradients_are_reproducible_on_the_gpu():
    torch.manual_seed(0)
    shapes = {"u": (2, 96, 1000), "delta": (2, 96, 1000), "A": (96, 16), "B": (2, 1, 16, 1000), "C": (2, 1, 16, 1000)}
    inputs = {name: torch.randn(shape, device="cuda") for name, shape in shapes.items()} | dict.fromkeys(NAMES[5:])
    inputs["A"] = -inputs["A"].abs()
    grad_y = torch.randn(2, 96, 1000, device="cuda")
    first, second = (evaluate(inputs, grad_y, None, True, False) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


if __name__ == "__main__":
    run_all(CHECKS)
