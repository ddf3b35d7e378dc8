"""Random valid plans: every network is built, learns and is restored, or names the value it does not support."""

import re
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nnunet_ext.blocks.conv import ConvNormAct
from nnunet_ext.networks import NETWORKS
from nnunet_ext.networks.topology import Topology
from tests.helpers.small_networks import FURTHER, with_support

MAX_POOLINGS = 8
MAX_VOXELS = 2**10
REFUSALS = (
    r"^`n_stages`=\d+ must be at least \d",
    r"^EM-Net needs at least 2 poolings, the plan has \d: `strides`=",
    r"^`patch_size`=\(.*\) leaves one voxel at the lowest",
    r"^slices of \(\d+, \d+\) voxels are too small for this encoder: at least \(\d+, \d+\)$",
)
"""Acceptable error messages, each with the value."""


@st.composite
def plans(draw):
    """Arguments of a network as in nnU-Net's plans, small enough for a CPU."""
    axes, n_stages = draw(st.integers(2, 3)), draw(st.integers(2, 6))
    places = [(stage, axis) for stage in range(1, n_stages) for axis in range(axes)]
    pooled = set(draw(st.lists(st.sampled_from(places), max_size=MAX_POOLINGS, unique=True)))
    strides = [[1 + ((stage, axis) in pooled) for axis in range(axes)] for stage in range(n_stages)]
    patch = [prod(axis) for axis in zip(*strides, strict=True)]
    for axis in range(axes):
        patch[axis] *= draw(st.integers(1, max(1, min(5, MAX_VOXELS // prod(patch)))))
    kernel = st.lists(st.sampled_from([1, 3]), min_size=axes, max_size=axes)
    return {
        "input_channels": draw(st.integers(1, 3)),
        "num_classes": draw(st.integers(2, 4)),
        "patch_size": patch,
        "n_stages": n_stages,
        "features_per_stage": draw(st.lists(st.integers(1, 6), min_size=n_stages, max_size=n_stages)),
        "conv_op": nn.Conv2d if axes == 2 else nn.Conv3d,
        "kernel_sizes": draw(st.lists(kernel, min_size=n_stages, max_size=n_stages)),
        "strides": strides,
    }


def check(name, plan, adapted, deep_supervision):
    network_class = NETWORKS[name].network
    topology = {k: v for k, v in plan.items() if k not in ("input_channels", "num_classes")}
    Topology.create(**topology)  # valid: any later failure is the network's

    def build():
        arguments = plan
        if adapted and hasattr(network_class, "adapt_topology"):
            arguments = plan | network_class.adapt_topology(**topology)
            arguments["features_per_stage"] = plan["features_per_stage"][: arguments["n_stages"]]
        return network_class(**arguments, **FURTHER.get(name, {}), deep_supervision=deep_supervision)

    try:
        network = with_support(build())
    except ValueError as refusal:
        if any(re.match(message, str(refusal)) for message in REFUSALS):
            return
        raise
    x = torch.randn(2, plan["input_channels"], *plan["patch_size"])
    outputs = network(x)
    outputs = outputs if deep_supervision else [outputs]
    assert outputs[0].shape == (2, plan["num_classes"], *plan["patch_size"])
    assert all(y.isfinite().all() for y in outputs)
    sum((y * torch.randn_like(y)).mean() for y in outputs).backward()
    assert [k for k, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    restored = build()
    restored.load_state_dict(network.state_dict())
    with torch.no_grad():
        for a, b in zip(*(n.eval()(x) for n in (network, restored)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (3, 3)])
def test_a_stride_larger_than_the_kernel_equals_pytorchs(kernel, assert_close):
    """PyTorch's own may crash in the backward pass, so only its values are compared."""
    block = ConvNormAct(nn.Conv2d, 3, 2, kernel, stride=(2, 2))
    x, padding = torch.randn(2, 3, 12, 16), [k // 2 for k in kernel]
    with torch.no_grad():
        expected = block.norm_act(nn.functional.conv2d(x, block.conv.weight, block.conv.bias, 2, padding))
    assert_close(block(x), expected, 1e-5)


every_network = pytest.mark.parametrize("name", sorted(NETWORKS))
choices = {"plan": plans(), "adapted": st.booleans(), "deep_supervision": st.booleans()}


@every_network
@settings(max_examples=15, deadline=None, derandomize=True)
@given(**choices)
def test_plans(name, plan, adapted, deep_supervision):
    check(name, plan, adapted, deep_supervision)


@pytest.mark.slow
@pytest.mark.long
@every_network
@settings(max_examples=200, deadline=None)
@given(**choices)
def test_many_plans(name, plan, adapted, deep_supervision):
    check(name, plan, adapted, deep_supervision)
