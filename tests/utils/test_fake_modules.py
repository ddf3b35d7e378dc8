"""Networks on fake tensors, also where a constructor reads values."""

import pytest
import torch
from torch import nn

from nnunet_ext.utils.fake_modules import built_on_fake_tensors, fake_copy
from nnunet_ext.utils.torch_private import FakeTensor, FakeTensorMode


class StochasticDepth(nn.Module):
    """Its rates are read from a tensor, as in many transformers; one tensor is neither parameter nor buffer."""

    def __init__(self):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.5, 3)]
        self.last = torch.zeros(2)
        self.first = nn.Linear(2, 2)
        self.second = self.first
        self.first.bias.requires_grad_(False)

    def forward(self, x):
        return self.second(self.first(x)) * self.rates[1] + self.last


def check(network):
    assert all(isinstance(p, FakeTensor) for p in network.parameters())
    assert network.second.weight is network.first.weight
    assert [p.requires_grad for p in network.parameters()] == [True, False]
    assert network(torch.empty(3, 2)).shape == (3, 2)


def test_a_constructor_that_reads_values_is_built_on_fake_tensors():
    with FakeTensorMode():
        network = built_on_fake_tensors(StochasticDepth)
        check(network)
    assert network.rates == [0, 0.25, 0.5]


def test_tensors_in_attributes_are_fake_in_a_twin():
    real = StochasticDepth()
    with FakeTensorMode():
        twin = fake_copy(real)
        check(twin)
    assert isinstance(twin.last, FakeTensor)
    assert not isinstance(real.last, FakeTensor)
    assert twin.last.shape == (2,)


def test_other_errors_of_a_constructor_are_its_own():
    def fail():
        raise RuntimeError("too few heads")

    with pytest.raises(RuntimeError, match="too few heads"):
        built_on_fake_tensors(fail)
