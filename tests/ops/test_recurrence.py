"""The recurrence in chunks against the one by steps, alone and within the selective scan."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ext.ops import recurrence, segment_scan, selective_scan, selective_scan_reference


class Counted(TorchDispatchMode):
    """Counts operations that are not views."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.fixture
def in_chunks(monkeypatch):
    """As on an accelerator, in segments of several lengths."""
    monkeypatch.setattr(recurrence, "_STEP_BY_STEP", ())
    monkeypatch.setattr(recurrence, "_FEW_STEPS", 0)
    monkeypatch.setattr(segment_scan, "_SEGMENT_ELEMENTS", 2 * 20 * 5 * 150)


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 11, 12, 13, 48, 100])
def test_chunks_are_steps(steps, backwards):
    a, b, state = torch.rand(steps, 2, 3).double(), torch.randn(steps, 2, 3).double(), torch.randn(2, 3).double()
    expected, found = b.clone(), b.clone()
    recurrence._recur_by_steps(a, expected, state, backwards)
    recurrence.recur(a, found, state, backwards)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.usefixtures("in_chunks")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 40, 150, 151, 400])
def test_the_scan_in_chunks_equals_the_reference(length, reverse, assert_close):
    shapes = {"u": (2, 20, length), "delta": (2, 20, length), "A": (20, 5), "B": (2, 5, length), "C": (2, 5, length)}
    inputs = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    inputs["A"] = -inputs["A"].abs()
    results = []
    for scan, options in ((selective_scan, {"backend": "torch"}), (selective_scan_reference, {})):
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        y, state = scan(**leaves, delta_softplus=True, return_last_state=True, reverse=reverse, **options)
        grads = torch.autograd.grad(y.square().sum() + state.sum(), list(leaves.values()))
        results.append((y.detach(), state.detach(), *grads))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, 1e-12)


@pytest.mark.usefixtures("in_chunks")
def test_a_step_is_not_an_operation_of_its_own():
    steps = 2700
    a, h, state = torch.rand(steps, 2), torch.randn(steps, 2), torch.randn(2)
    with Counted() as counted:
        recurrence.recur(a, h, state)
    assert counted.number < 2.2 * (3 * steps) ** 0.5 + 100  # 2 sqrt(3 l), and a copy of every state before a chunk
