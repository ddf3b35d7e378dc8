"""5x5 convolutions by Winograd's method in the C extension, against PyTorch's in double precision."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.networks.lstm_sa.conv_lstm import SliceLSTM
from nnunet_ext.ops import native, winograd
from nnunet_ext.ops.native import INSTRUCTION_SETS
from nnunet_ext.ops.portable import portable_operators
from tests.helpers.libraries import library_for

TOLERANCE = 2e-5
"""Relative to the largest value."""


@pytest.fixture(params=INSTRUCTION_SETS)
def library(request, monkeypatch):
    chosen = library_for(request.param)
    monkeypatch.setattr(native, "native_library", lambda: chosen)
    return chosen


@pytest.fixture
def built():
    if native.native_library() is None:
        pytest.skip("the C extension was not built")


def leaves(n, height, width, inputs, outputs, dtype=torch.float32):
    tensors = torch.randn(n, height, width, inputs), torch.randn(outputs, inputs, 5, 5) / 5, torch.randn(outputs)
    return [t.to(dtype).requires_grad_() for t in tensors]


def results(function, tensors):
    y = function(*tensors)
    grad = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view(y.shape)
    return y.detach(), *torch.autograd.grad(y, [t for t in tensors if t is not None], grad)


def expected_results(tensors):
    double = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    return [t.float() for t in results(winograd.plain_convolution, double)]


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (2, 4, 4, 3, 5),
        (1, 5, 3, 33, 16),
        (2, 8, 12, 32, 128),
        (3, 13, 17, 128, 32),
        (1, 2, 40, 21, 37),
        (2, 56, 41, 16, 64),
        (1, 7, 9, 96, 70),
    ],
    ids=str,
)
def test_equals_double_precision_with_every_gradient(library, shape, assert_close):
    tensors = leaves(*shape)
    for found, expected in zip(results(winograd.convolution, tensors), expected_results(tensors), strict=True):
        assert_close(found, expected, TOLERANCE)


def test_the_kernels_transforms_are_each_others_adjoint(assert_close):
    """<pack w, p> = <w, unpack p>, with channels that do not fill the slices."""
    weight, packed = torch.randn(37, 21, 5, 5), torch.randn(2, 64, 32, 32)
    left = (winograd._pack(weight) * packed).sum()
    right = (weight * winograd._unpack_gradient(packed, 37, 21)).sum()
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads(library, threads, assert_close):
    tensors = leaves(3, 21, 18, 32, 40)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = results(winograd.convolution, tensors)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(found, expected_results(tensors), strict=True):
        assert_close(a, b, TOLERANCE)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("channels", [32, 64])
def test_rounding_errors_are_at_most_five_times_those_of_pytorch(channels):
    tensors = [t.detach() for t in leaves(4, 56, 40, channels, 4 * channels)]
    expected = winograd.plain_convolution(*(t.double() for t in tensors))
    ours, theirs = (
        (f(*tensors).double() - expected).square().mean().sqrt()
        for f in (winograd.convolution, winograd.plain_convolution)
    )
    assert ours <= 5 * theirs


@pytest.mark.usefixtures("built")
def test_maps_with_any_strides_and_no_bias(assert_close):
    x, weight, _ = leaves(2, 9, 10, 40, 33)
    given = [
        x.detach().movedim(-1, 1).contiguous().movedim(1, -1).requires_grad_(),
        weight.detach().to(memory_format=torch.channels_last).requires_grad_(),
        None,
    ]
    assert not given[0].is_contiguous()
    for found, expected in zip(results(winograd.convolution, given), expected_results([x, weight, None]), strict=True):
        assert_close(found, expected, TOLERANCE)
    # The gradient of a sum is one value with strides of 0.
    y = winograd.convolution(x, weight, None).sum()
    expected = winograd.plain_convolution(x, weight, None).sum()
    for a, b in zip(torch.autograd.grad(y, (x, weight)), torch.autograd.grad(expected, (x, weight)), strict=True):
        assert_close(a, b, TOLERANCE)


@pytest.mark.usefixtures("built")
def test_frozen_tensors_get_no_gradient(assert_close):
    tensors = leaves(1, 9, 9, 32, 32)
    expected = expected_results(tensors)[1:]
    for wanted in range(3):
        given = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        y = winograd.convolution(*given)
        y.backward(torch.linspace(-1, 2, y.numel()).sin().view(y.shape))
        assert [t.grad is not None for t in given] == [i == wanted for i in range(3)]
        assert_close(given[wanted].grad, expected[wanted], TOLERANCE)


def test_other_types_and_installations_without_a_compiler_get_pytorch(monkeypatch):
    tensors = leaves(1, 4, 3, 2, 3, torch.float64)
    assert torch.autograd.gradcheck(winograd.convolution, tensors)
    monkeypatch.setattr(native, "native_library", lambda: None)
    single = leaves(2, 5, 6, 3, 2)
    plain = results(winograd.plain_convolution, single)
    for a, b in zip(results(winograd.convolution, single), plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("built")
def test_a_second_derivative_is_an_error():
    x, weight, bias = leaves(1, 8, 8, 32, 32)
    y = winograd.convolution(x, weight, bias)
    gradients = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
    with pytest.raises(RuntimeError, match=r"nnunet_ext\.winograd_kernel_gradient.*no autograd formula"):
        sum(g.square().sum() for g in gradients).backward()


@pytest.mark.usefixtures("built")
def test_follows_pytorchs_rules_for_operators():
    torch.library.opcheck(winograd.convolution, leaves(1, 9, 8, 33, 34))
    torch.library.opcheck(winograd._kernel_gradient, (torch.randn(1, 9, 8, 33), torch.randn(1, 9, 8, 34)))


@pytest.mark.usefixtures("built")
def test_counts_the_operations_of_a_direct_convolution():
    tensors = leaves(2, 9, 7, 5, 6)
    counts = []
    for function in (winograd.convolution, winograd.plain_convolution):
        with FlopCounterMode(display=False) as counter:
            results(function, tensors)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 2 * 9 * 7 * 5 * 6 * 25


@pytest.mark.usefixtures("built")
def test_is_used_where_it_is_faster_and_as_exact():
    def used(shape=(1, 32, 32), channels=32, kernel=5, dtype=torch.float32):
        x, weight = torch.empty(*shape, channels, dtype=dtype), torch.empty(128, channels, kernel, kernel, dtype=dtype)
        return winograd.is_faster(x, weight)

    assert used()
    assert used((2, 3, 16, 16))
    assert not used((1, 31, 32))
    assert not used((100, 15, 40))
    assert not used(channels=31)
    assert not used(kernel=3)
    assert not used(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert not used()
    with portable_operators():
        assert not used()
    assert torch.func.grad(lambda x: x * (not used()))(torch.ones(())) == 1


class _States(torch.nn.Module):
    def __init__(self, lstm):
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        return tuple(self.lstm(x, None, True)[0])


@pytest.mark.usefixtures("built")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("reverse", [False, True])
def test_convlstm(reverse, monkeypatch, assert_close):
    """States and gradients of a ConvLSTM that uses it, in every mode, against one in double precision."""
    calls = []
    monkeypatch.setattr(winograd, "library_for", lambda *a: calls.append(a[0]) or native.library_for(*a))
    lstm = SliceLSTM(32, reverse=reverse)
    x = torch.randn(1, 3, 20, 19, 32, requires_grad=True)

    module = _States(lstm)
    states = module.forward

    def gradients(x):
        loss = sum((k + 1) * y.sin().sum() for k, y in enumerate(states(x)))
        return torch.autograd.grad(loss, (x, *lstm.parameters()))

    found, found_gradients = states(x), gradients(x)
    assert calls
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(states(x), found, strict=True))
    traced = torch.jit.trace(module, x.detach(), check_trace=False)
    assert all(torch.equal(a, b) for a, b in zip(traced(x.detach()), found, strict=True))
    torch._dynamo.reset()
    compiled = torch.compile(states, fullgraph=True, backend="aot_eager")(x)
    exported = torch.export.export(module, (x.detach(),)).module()(x.detach())
    lstm.double()
    expected, expected_gradients = states(x.double()), gradients(x.detach().double().requires_grad_())
    for result in (found, compiled, exported):
        for a, b in zip(result, expected, strict=True):
            assert_close(a, b.float(), 1e-5)
    for a, b in zip(found_gradients, expected_gradients, strict=True):
        assert_close(a, b.float(), TOLERANCE)
