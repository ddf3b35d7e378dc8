"""The contract of every network; a new network is included through `nnunet_ext.networks.NETWORKS`."""

from itertools import product

import pytest
import torch

from nnunet_ext.check.values import check_prediction_weights, check_samples
from nnunet_ext.networks import NETWORKS, network_info
from tests.helpers.small_networks import CASES, build, image, images_for, subject

every_network = pytest.mark.parametrize("name", sorted(NETWORKS))
with_lower_outputs = pytest.mark.parametrize("name", sorted(n for n, info in NETWORKS.items() if info.lower_outputs))
of_one_size = pytest.mark.parametrize("name", sorted(n for n, info in NETWORKS.items() if not info.any_size))
every_case = pytest.mark.parametrize("case", list(CASES))


@every_network
@every_case
@pytest.mark.parametrize("input_channels", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_are_right_values_finite_and_every_parameter_learns(name, case, input_channels, batch):
    network = build(name, case, input_channels, deep_supervision=True)
    outputs = network(image(case, batch, input_channels))
    sizes = [tuple(o.shape) for o in outputs]
    assert sizes[0] == (batch, 3, *CASES[case]["patch_size"])
    assert len(sizes) == (3 if NETWORKS[name].lower_outputs else 1)
    assert all(o.isfinite().all() for o in outputs)
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()
    silent = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    idle = [k for k, p in network.named_parameters() if (p.grad == 0).all() and not k.endswith("conv.bias")]
    assert idle == []


@every_network
@every_case
def test_samples_do_not_see_each_other(name, case):
    check_samples(subject(name, case))


@every_network
@every_case
def test_deep_supervision_is_switched_as_nnunet_does(name, case, assert_close):
    network = build(name, case, deep_supervision=True).eval()
    x = image(case)
    with torch.no_grad():
        outputs = network(x)
        network.decoder.deep_supervision = False
        single = network(x)
    assert isinstance(outputs, list)
    assert_close(single, outputs[0], 1e-6)
    sizes = [o.shape[2:] for o in outputs]
    assert sizes == sorted(sizes, key=lambda s: -s.numel())


@with_lower_outputs
@every_case
def test_weights_trained_with_deep_supervision_load_for_prediction(name, case):
    check_prediction_weights(subject(name, case))
    predictor, trained = (build(name, case, deep_supervision=supervised) for supervised in (False, True))
    assert sum(p.numel() for p in predictor.parameters()) < sum(p.numel() for p in trained.parameters())


@of_one_size
@every_case
def test_another_size_is_an_error_that_names_both(name, case):
    network = build(name, case)
    size = CASES[case]["patch_size"]
    wrong = (size[0] * 2, *size[1:])
    with pytest.raises(ValueError, match=rf"{', '.join(map(str, size))}\).*{', '.join(map(str, wrong))}"):
        network(torch.randn(1, 1, *wrong))
    with pytest.raises(ValueError, match=r"inputs of shape \(B, 1, "):
        network(torch.randn(1, 2, *size))


@pytest.mark.parametrize(("name", "case"), [*product(NETWORKS, ["2d", "3d"]), ("mt_unet", "2d")])
def test_layout_of_the_input_and_of_the_weights_does_not_matter(name, case, assert_close):
    """Values, gradients of the weights and of the input."""
    network = build(name, case, input_channels=2).eval()
    plain = images_for(network, 2)
    transposed = plain.transpose(-1, -2).contiguous().transpose(-1, -2)
    every_other = torch.stack((plain, torch.zeros_like(plain)), -1).flatten(-2)[..., ::2]
    last = torch.channels_last if plain.ndim == 4 else torch.channels_last_3d
    weights = torch.randn_like(network(plain))

    def results(x):
        network.zero_grad()
        x = x.detach().requires_grad_()
        y = network(x)
        (y * weights).sum().backward()
        learnt = [p.grad.flatten() for p in network.parameters() if p.requires_grad]
        return y, torch.cat(learnt), x.grad

    expected = results(plain)
    layouts = (plain.to(memory_format=last), transposed, every_other)
    assert not any(x.is_contiguous() for x in layouts)
    for x in layouts:
        for actual, value in zip(results(x), expected, strict=True):
            assert_close(actual, value, 1e-4)
    # Networks that work on slices use 2D convolutions for volumes.
    flat = any(p.ndim == 4 for p in network.parameters())
    network.to(memory_format=torch.channels_last if flat else torch.channels_last_3d)
    for actual, value in zip(results(plain), expected, strict=True):
        assert_close(actual, value, 1e-4)


@every_network
@pytest.mark.parametrize(("argument", "value"), [("num_classes", 0), ("input_channels", 0)])
def test_nothing_to_read_or_to_give_is_an_error(name, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`=0 must be at least 1"):
        build(name, "3d", **{argument: value})


def test_unknown_networks_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown network 'unet'; known: .*sasan"):
        network_info("unet")
