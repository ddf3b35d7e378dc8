"""PyTorch's features around a network: the values are those of a plain call, or an error says why not."""

import copy
import importlib
import pkgutil
import warnings

import pytest
import torch
from torch import nn

import nnunet_ext
from nnunet_ext.check.subject import outputs_of, rounding, without_dropout
from nnunet_ext.check.surroundings import listen, traced_outputs
from nnunet_ext.ops import once
from tests.helpers.small_networks import EVERY, build, images_for

every_network = pytest.mark.parametrize("name", EVERY)
# Tracing the others takes up to a minute.
traced_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("em_net", "mt_unet") else name for name in EVERY]
)
cases = pytest.mark.parametrize("case", ["2d", "3d"])


@traced_network
@cases
@pytest.mark.parametrize("gradients", [True, False])
def test_a_trace_gives_what_the_network_gives(name, case, gradients, assert_close):
    """A trace is right for other values than it was made with, and after it was saved."""
    network = build(name, case).eval()
    x, other = images_for(network), images_for(network)
    with torch.set_grad_enabled(gradients):
        for values, found in zip((x, other), traced_outputs(network, x, other), strict=True):
            assert_close(found, network(values), 1e-5)


@every_network
@cases
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_hooks_keep_is_not_overwritten(name, case, gradients, batch, assert_close):
    """Grad-CAM, feature extraction and auxiliary losses keep maps of inner modules."""
    network = build(name, case).eval()
    x = images_for(network, batch)
    with torch.set_grad_enabled(gradients):
        expected, tolerance = outputs_of(network, x), max(1e-5, 2 * rounding(network, x))
        seen = []
        listen(network, seen)
        for actual, value in zip(outputs_of(network, x), expected, strict=True):
            assert_close(actual, value, tolerance)  # other kernels convolve under hooks
    assert len(seen) > 10
    changed = {type(module).__name__ for module, now, then in seen if not torch.equal(now, then)}
    assert changed == set()


@every_network
def test_a_hook_of_all_modules_keeps_what_it_saw(name):
    network = build(name, "2d").eval()
    convolutions = []

    def keep(module, inputs, result):
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            convolutions.append((result, result.clone()))

    handle = nn.modules.module.register_module_forward_hook(keep)
    try:
        with torch.no_grad():
            network(images_for(network))
    finally:
        handle.remove()
    assert len(convolutions) > 0
    assert all(torch.equal(now, then) for now, then in convolutions)


@traced_network
@cases
def test_an_exported_program_gives_what_the_network_gives(name, case, assert_close):
    if name == "faf_net" and torch.__version__ < "2.6":
        pytest.skip("PyTorch 2.5 cannot export nested regions without autocast")
    network = build(name, case).eval()
    x, other = images_for(network), images_for(network)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own tracer
        program = torch.export.export(network, (x,))
        for values in (x, other):
            tolerance = max(1e-4, 2 * rounding(network, values))
            assert_close(program.module()(values), network(values), tolerance)


@every_network
@cases
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_low_precision(name, case, dtype, assert_close):
    """Low-precision weights against float32 weights of the same values; gradients have the weights' own type."""
    network = build(name, case, deep_supervision=True).to(dtype)
    if hasattr(network, "set_support"):
        from tests.helpers.small_networks import with_support

        torch.manual_seed(1)
        with_support(network)
    wide = copy.deepcopy(network).float()
    x = images_for(network, 2).to(dtype)
    without_dropout(network)
    without_dropout(wide)
    found, expected = outputs_of(network, x), outputs_of(wide, x.float())
    for actual, value in zip(found, expected, strict=True):
        assert_close(actual.float(), value, 1e-5)
    for results in (found, expected):
        sum((r.float() * torch.linspace(-1, 1, r.numel()).view(r.shape)).sum() for r in results).backward()
    exact = dict(wide.named_parameters())
    for key, p in network.named_parameters():
        if p.requires_grad:
            assert p.grad.dtype == dtype, key
            assert_close(p.grad.float(), exact[key].grad.to(dtype).float(), 1e-2)
    for key, buffer in network.named_buffers():
        assert_close(buffer.double(), wide.get_buffer(key).to(buffer.dtype).double(), 1e-2)


@every_network
@cases
@pytest.mark.parametrize("training", [True, False])
def test_empty_batches_give_empty_outputs(name, case, training):
    network = build(name, case, deep_supervision=True).train(training)
    one, before = images_for(network), copy.deepcopy(network.state_dict())
    found = outputs_of(network, one[:0])
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(m.training == training for m in network.modules() if not hasattr(m, "frozen_norms"))
    expected = outputs_of(network, one)
    assert [tuple(o.shape) for o in found] == [(0, *o.shape[1:]) for o in expected]
    sum(o.sum() for o in found).backward()
    learning = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in learning)


@every_network
@cases
def test_second_derivatives_are_right_or_an_error_names_the_operator(name, case):
    network = build(name, case).eval()
    x = images_for(network).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"(nnunet_ext(::|\.)|aten::)\w+"):
        gradient.square().sum().backward()


@every_network
@cases
def test_transforms_of_torch_func_are_right_or_an_error_names_the_operator(name, case, assert_close):
    network = build(name, case).eval()
    x = images_for(network)
    weights = {k: p.detach() for k, p in network.named_parameters() if p.requires_grad}

    def loss(values):
        return torch.func.functional_call(network, values, (x,)).square().sum()

    network(x).square().sum().backward()
    try:
        gradients = torch.func.grad(loss)(weights)
    except RuntimeError as error:
        assert "nnunet_ext::" in str(error)  # noqa: PT017
        return
    expected = torch.cat([network.get_parameter(key).grad.flatten() for key in gradients])
    assert_close(torch.cat([g.flatten() for g in gradients.values()]), expected, 1e-4)


@every_network
@pytest.mark.parametrize("slices", [2, 0])
def test_functional_calls_use_the_weights_they_are_given(name, slices, assert_close):
    """Also in the backward pass, where activations are recomputed after the call."""
    network, other = build(name, "3d").eval(), build(name, "3d").eval()
    for each in (network, other):
        for setting in ("slices_per_chunk", "checkpoint_slices"):
            if hasattr(each, setting):
                setattr(each, setting, slices or 100)
    if hasattr(network, "set_support"):
        other.decoder.seg_layers.load_state_dict(network.decoder.seg_layers.state_dict())
    x = images_for(network)
    weights = {key: p.detach().clone().requires_grad_(p.requires_grad) for key, p in other.named_parameters()}
    torch.func.functional_call(network, weights, (x,)).square().sum().backward()
    other(x).square().sum().backward()
    assert all(p.grad is None for p in network.parameters())
    assert_close(
        torch.cat([w.grad.flatten() for w in weights.values() if w.grad is not None]),
        torch.cat([p.grad.flatten() for p in other.parameters() if p.grad is not None]),
        1e-5,
    )


def test_every_autograd_function_refuses_second_derivatives_by_name():
    """PyTorch's own refusal takes gradients for constants, so that second derivatives could lack terms silently."""
    for module in pkgutil.walk_packages(nnunet_ext.__path__, "nnunet_ext."):
        if module.name.split(".")[1] in ("ops", "blocks", "networks", "losses") and "triton" not in module.name:
            importlib.import_module(module.name)
    ours = [f for f in torch.autograd.Function.__subclasses__() if f.__module__.startswith("nnunet_ext.")]
    assert {"_ChunkedAttention", "_LowBand", "_Gate", "_RegionSums"} <= {function.__name__ for function in ours}
    for function in ours:
        if function.__name__ != "_Refused" and "backward" in vars(function):
            assert function.backward.__code__.co_filename == once.__file__, function
