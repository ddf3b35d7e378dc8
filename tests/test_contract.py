"""What every network promises; a new network joins through `nnunet_ext.networks.NETWORKS`."""

import warnings

import pytest
import torch
from torch import nn

from nnunet_ext.networks import NETWORKS, network_info

CASES = {
    "3d": {"conv_op": nn.Conv3d, "patch_size": (16, 16, 24), "strides": 2, "kernel_sizes": 3},
    "2d": {"conv_op": nn.Conv2d, "patch_size": (32, 24), "strides": 2, "kernel_sizes": 3},
    "anisotropic": {
        "conv_op": nn.Conv3d,
        "patch_size": (16, 64, 64),
        "strides": [(1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2)],
        "kernel_sizes": [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)],
    },
    "odd level sizes": {"conv_op": nn.Conv3d, "patch_size": (24, 40, 8), "strides": 2, "kernel_sizes": 3},
}

FURTHER = {"faf_net": {"encoder": "plan"}}
"""Arguments without which a network is too large for these tests."""

every_network = pytest.mark.parametrize("name", sorted(NETWORKS))
with_lower_outputs = pytest.mark.parametrize("name", sorted(n for n, info in NETWORKS.items() if info.lower_outputs))
of_one_size = pytest.mark.parametrize("name", sorted(n for n, info in NETWORKS.items() if not info.any_size))
every_case = pytest.mark.parametrize("case", list(CASES))


def build(name, case, input_channels=1, num_classes=3, deep_supervision=False):
    common = {"n_stages": 4, "features_per_stage": (4, 6, 8, 10)}
    return with_support(
        NETWORKS[name].network(
            input_channels=input_channels,
            num_classes=num_classes,
            deep_supervision=deep_supervision,
            **FURTHER.get(name, {}),
            **common,
            **CASES[case],
        )
    )


def with_support(network):
    """Few-shot networks predict what they have been shown."""
    if hasattr(network, "set_support"):
        size = network.patch_size[-2:]
        masks = torch.zeros(2, network.num_classes - 1, *size)
        masks[..., : size[0] // 2, 2:] = 1
        network.set_support(torch.randn(2, network.input_channels, *size), masks)
    return network


def image(case, batch=1, input_channels=1):
    return torch.randn(batch, input_channels, *CASES[case]["patch_size"])


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
def test_samples_do_not_see_each_other(name, case, assert_close):
    network = build(name, case).eval()
    x = image(case, batch=3)
    with torch.no_grad():
        together = network(x)
        apart = torch.cat([network(sample[None]) for sample in x])
    assert_close(together, apart, 1e-4)


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
def test_weights_trained_with_deep_supervision_load_for_prediction(name, case, assert_close):
    trained = build(name, case, deep_supervision=True).eval()
    predictor = build(name, case).eval()
    predictor.load_state_dict(trained.state_dict())
    x = image(case)
    with torch.no_grad():
        assert_close(predictor(x), trained(x)[0], 1e-6)
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


@every_network
def test_layout_of_the_input_does_not_matter(name, assert_close):
    network = build(name, "3d", input_channels=2).eval()
    x = image("3d", 2, input_channels=2)
    strided = torch.randn(2, 2, 24, 16, 16).movedim(2, -1)
    with torch.no_grad():
        assert_close(network(x.to(memory_format=torch.channels_last_3d)), network(x), 1e-5)
        assert_close(network(strided), network(strided.contiguous()), 1e-5)
        plain = network(x)
        # Networks that work on slices have 2D convolutions for 3D images.
        flat = any(p.ndim == 4 for p in network.parameters())
        memory_format = torch.channels_last if flat else torch.channels_last_3d
        assert_close(network.to(memory_format=memory_format)(x), plain, 1e-5)


@every_network
def test_compiles_to_one_graph(name, assert_close):
    """As nnU-Net compiles networks on CUDA by default; here without a code generator, which takes minutes."""
    network = build(name, "2d", input_channels=2, deep_supervision=True)
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # each run would drop other channels
    x = image("2d", 2, input_channels=2)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own tracer
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
        gradients = []
        for outputs in (network(x), compiled):
            network.zero_grad()
            sum(o.square().mean() for o in outputs).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert_close(compiled[0], network(x)[0], 1e-4)
    assert_close(*gradients, 1e-4)


@every_network
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("magnitude", [1, 100])
def test_low_precision_stays_finite_at_five_levels(name, dtype, magnitude):
    """The authors' five levels, whose unscaled spectrum overflows float16; forward and backward.

    The lowest level is 3 voxels wide: at 2, below the kernel's width, oneDNN's bfloat16 gradient of a 3 x 3 x 3
    convolution's weight is wrong (seen with torch 2.15 on a CPU with AVX512-BF16, with the convolution alone).
    """
    network = with_support(
        NETWORKS[name].network(
            input_channels=1,
            num_classes=3,
            patch_size=(48, 48, 48),
            n_stages=5,
            features_per_stage=(4, 8, 8, 16, 16),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=2,
            deep_supervision=True,
            **FURTHER.get(name, {}),
        )
    )
    with torch.autocast("cpu", dtype=dtype):
        outputs = network(magnitude * torch.randn(1, 1, 48, 48, 48))
    assert all(o.isfinite().all() for o in outputs)
    torch.stack([o.float().square().mean() for o in outputs]).sum().backward()
    broken = [k for k, p in network.named_parameters() if not p.grad.isfinite().all()]
    assert broken == []


@every_network
@pytest.mark.parametrize(("argument", "value"), [("num_classes", 0), ("input_channels", 0)])
def test_nothing_to_read_or_to_give_is_an_error(name, argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`=0 must be at least 1"):
        build(name, "3d", **{argument: value})


def test_unknown_networks_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown network 'unet'; known: .*sasan"):
        network_info("unet")
