"""The private parts of PyTorch under the installed release; no other module of the package imports any."""

import re
import weakref

import torch
from torch import nn

from nnunet_ext.utils import torch_private
from tests.helpers.paths import ROOT


def test_nothing_else_touches_what_is_private():
    private = re.compile(r"\btorch(\.\w+)*\._(?!_)\w+|\b_BatchNorm\b|\._(sequence_nr|input_metadata|cdata)\b")
    found = {}
    for file in sorted((ROOT / "nnunet_ext").rglob("*.py")):
        lines = [line for line in file.read_text().splitlines() if private.search(line)]
        if lines and file.name != "torch_private.py":
            found[file.name] = lines
    assert found == {}


def test_a_scan_is_one_operator_of_a_graph():
    def cumulate(total, x, scale):
        total = total + scale * x
        return total, total.clone()

    class Sums(nn.Module):
        def forward(self, x):
            return torch_private.recorded_scan(cumulate, torch.zeros_like(x[0]), [x], 2 * torch.ones_like(x[0]))[1]

    x = torch.arange(6.0).view(3, 2)
    program = torch.export.export(Sums(), (x,))
    assert [str(node.target) for node in program.graph.nodes].count("scan") == 1
    for run in (Sums(), program.module()):
        assert torch.equal(run(x), 2 * x.cumsum(0))


def test_functions_are_scripted_without_a_warning():
    assert torch_private.script(_twice)(torch.ones(2)).tolist() == [2, 2]


def _twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_hooks_of_a_module_and_of_all_modules_are_seen():
    module = nn.Linear(1, 1)
    assert not torch_private.has_hooks(module)
    for register in (module.register_forward_hook, nn.modules.module.register_module_forward_hook):
        handle = register(lambda *_: None)
        assert torch_private.has_hooks(module)
        handle.remove()
        assert not torch_private.has_hooks(module)


def test_transforms_are_seen():
    seen = []

    def square(x):
        seen.append(torch_private.in_function_transform())
        return x * x

    assert torch.func.grad(square)(torch.tensor(3.0)) == 6
    square(torch.tensor(3.0))
    assert seen == [True, False]


def test_finite_tensors():
    assert torch_private.all_finite([])
    assert torch_private.all_finite([torch.ones(2), torch.zeros(1, 3)])
    assert not torch_private.all_finite([torch.ones(2), torch.tensor([0.0, torch.inf])])


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(context, gradient):
        return 2 * gradient


def test_nodes_of_functions_are_kept_until_they_are_forgotten():
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    with torch_private.nodes_kept():
        before = x * 2
        node = _Twice.apply(before).grad_fn
    saved = weakref.ref(before)
    order = torch_private.sequence_number(before.grad_fn)
    del before
    assert torch_private.sequence_number(node) > order
    (told,) = torch_private.input_metadata(node)
    assert (tuple(told.shape), told.dtype, told.device) == ((2, 3), torch.float64, x.device)
    torch_private.forget_node(node)
    del node, told
    assert saved() is None


def test_nodes_tell_their_order_and_what_they_get():
    x = torch.ones(2, 3, requires_grad=True)
    first = x * 2
    second = first.sum()
    assert torch_private.sequence_number(second.grad_fn) > torch_private.sequence_number(first.grad_fn)
    (metadata,) = torch_private.input_metadata(first.grad_fn)
    assert tuple(metadata.shape) == (2, 3)
    assert torch_private.storage_key(x.untyped_storage()) == torch_private.storage_key(x[0].untyped_storage())
