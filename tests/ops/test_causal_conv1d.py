import pytest
import torch

from nnunet_ext.ops import causal_conv1d, causal_conv1d_reference, native
from nnunet_ext.ops.causal_conv1d import _package_takes


@pytest.fixture(params=["extension", "PyTorch"])
def variant(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(native, "native_library", lambda: None)
    elif native.native_library() is None:
        pytest.skip("the C extension was not built")
    return request.param


def leaves(b, length, d, width, layout, dtype=torch.float32):
    if layout == "channels last":
        x = torch.randn(b, length, d, dtype=dtype).transpose(1, 2)
    elif layout == "slice":
        x = torch.randn(b, length, 2 * d + 3, dtype=dtype)[..., 3 : d + 3].transpose(1, 2)
    else:
        x = torch.randn(b, d, length, dtype=dtype)
    weight, bias = torch.randn(d, width, dtype=dtype), torch.randn(d, dtype=dtype)
    return [t.requires_grad_() for t in (x, weight, bias)]


def results(function, tensors, *options):
    y = function(*tensors, *options)
    grad = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    given = [t for t in tensors if t is not None]
    return y.detach(), *torch.autograd.grad((y * grad).sum(), given)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize("layout", ["channels last", "channels first", "slice"])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 128, 300])
def test_equals_the_reference(variant, length, layout, activation, reverse, assert_close):
    tensors = leaves(2, length, 20, 4, layout)
    fast, plain = (results(f, tensors, activation, reverse) for f in (causal_conv1d, causal_conv1d_reference))
    for a, b in zip(fast, plain, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize(("d", "width"), [(1, 1), (33, 2), (8, 7)])
def test_any_width_without_bias(variant, d, width, assert_close):
    x, weight, _ = leaves(3, 40, d, width, "channels last")
    for reverse in (False, True):
        fast, plain = (results(f, (x, weight, None), "silu", reverse) for f in (causal_conv1d, causal_conv1d_reference))
        for a, b in zip(fast, plain, strict=True):
            assert_close(a, b, 1e-5)


def test_reverse_is_the_reversed_sequence():
    x, weight, bias = leaves(2, 30, 5, 4, "channels first", torch.float64)
    expected = causal_conv1d(x.flip(-1), weight, bias, "silu").flip(-1)
    torch.testing.assert_close(causal_conv1d(x, weight, bias, "silu", reverse=True), expected, rtol=0, atol=1e-14)


def test_gradients_in_double_precision():
    tensors = leaves(2, 7, 3, 4, "channels last", torch.float64)
    for reverse in (False, True):
        assert torch.autograd.gradcheck(lambda *t, r=reverse: causal_conv1d(*t, "silu", r), tensors)


def test_compiles_to_one_graph(assert_close):
    tensors = leaves(2, 50, 20, 4, "channels last")
    torch._dynamo.reset()
    compiled = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    for a, b in zip(results(compiled, tensors, "silu"), results(causal_conv1d, tensors, "silu"), strict=True):
        assert_close(a, b, 1e-6)


def test_wrong_inputs_are_named():
    x, weight, bias = leaves(1, 5, 3, 4, "channels first")
    with pytest.raises(ValueError, match="`activation`='relu' is unknown; known: 'silu', None"):
        causal_conv1d(x, weight, bias, "relu")
    with pytest.raises(ValueError, match=r"`weight` must have the shape \(d, k\)"):
        causal_conv1d(x, weight[:2], bias)
    with pytest.raises(ValueError, match=r"`bias` must have the shape \(3,\), got \(2,\)"):
        causal_conv1d(x, weight, bias[:2])


@pytest.mark.usefixtures("variant")
def test_weights_of_another_type_are_read_as_what_they_are(assert_close):
    x, weight, bias = (t.detach() for t in leaves(2, 20, 8, 4, "channels last"))
    expected = causal_conv1d_reference(x, weight, bias)
    assert_close(causal_conv1d(x, weight.double(), bias.double()).float(), expected, 1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_sequence_that_repeats_one_value_in_memory(reverse, assert_close):
    tensors = [torch.randn(2, 1, 8).transpose(1, 2).expand(2, 8, 6), torch.randn(8, 4), torch.randn(8)]
    tensors = [t.requires_grad_() for t in tensors]
    fast, plain = (results(f, tensors, "silu", reverse) for f in (causal_conv1d, causal_conv1d_reference))
    for a, b in zip(fast, plain, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize(
    ("width", "taps", "dtype", "taken"),
    [
        (16, 4, torch.float32, True),
        (16, 4, torch.bfloat16, True),
        (12, 4, torch.float32, False),
        (16, 5, torch.float32, False),
        (16, 1, torch.float32, False),
        (16, 4, torch.float64, False),
    ],
)
def test_the_package_gets_what_its_kernels_are_written_for(width, taps, dtype, taken):
    """The package's own checks, for adjacent channels; its kernels cannot run here."""
    x = torch.empty(2, 10, width, dtype=dtype).transpose(1, 2)
    assert _package_takes(x, torch.empty(width, taps)) == taken
    assert _package_takes(x.contiguous(), torch.empty(width, taps)) == (taken or width == 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_weights_have_gradients_in_their_own_precision(dtype, channels_last, reverse, assert_close):
    """For inputs of any type, within the tolerance of causal_conv1d's own tests."""
    x = torch.randn(2, 300, 24).transpose(1, 2) if channels_last else torch.randn(2, 24, 300)
    x = x.to(dtype)
    weight, bias = torch.randn(24, 4, requires_grad=True), torch.randn(24, requires_grad=True)
    y = causal_conv1d(x, weight, bias, "silu", reverse)
    assert y.dtype == dtype
    grad_y = torch.randn(y.shape).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = causal_conv1d_reference(*exact, "silu", reverse)
    gradients = torch.autograd.grad(expected, exact[1:], grad_y.double())
    for found, value in zip(torch.autograd.grad(y, (weight, bias), grad_y), gradients, strict=True):
        assert found.dtype == torch.float32
        assert_close(found.double(), value, 1e-6)
