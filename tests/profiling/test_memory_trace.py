"""The traced memory of training steps against that of real ones."""

import csv
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nnunet_ext.check.surroundings import real_peak
from nnunet_ext.networks import LSTMSA, SALSTM, SASAN, EMNet, UMamba
from nnunet_ext.profiling.backward import run_backward
from nnunet_ext.profiling.live_memory import LimitExceeded
from nnunet_ext.profiling.memory import trace_network
from nnunet_ext.utils.torch_private import nodes_kept

FEATURES = (8, 16, 32)
SMALL = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (8, 16, 16),
    "n_stages": 3,
    "features_per_stage": FEATURES,
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": 2,
    "deep_supervision": True,
}


def unet(features=FEATURES, **settings):
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    n = len(features)
    return PlainConvUNet(
        **{"input_channels": 1, "num_classes": 3} | settings,
        n_stages=n,
        features_per_stage=features,
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1] + [2] * (n - 1),
        n_conv_per_stage=2,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


MAKERS = {
    "nnU-Net": unet,
    "SASAN": lambda: SASAN(**SMALL),
    "EM-Net": lambda: EMNet(**SMALL),
    "U-Mamba": lambda: UMamba(**SMALL),
    "SALSTM": lambda: SALSTM(**SMALL),
    "LSTMSA": lambda: LSTMSA(**SMALL),
    "checkpointed LSTMSA": lambda: LSTMSA(**SMALL, checkpoint_slices=3),
    "LSTMSA on MT-UNet": lambda: LSTMSA(
        **SMALL | {"backbone": "mt_unet", "patch_size": (2, 32, 32), "deep_supervision": False}
    ),
}


QUICK = [name for name in MAKERS if "MT-UNet" not in name and "checkpointed" not in name]
LONG = (pytest.mark.slow, pytest.mark.long)
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MAKERS]


def mean_of_outputs(network, x):
    outputs = network(x)
    return torch.stack([y.mean() for y in (outputs if isinstance(outputs, list) else [outputs])]).sum()


def batch_for(name, batch=2):
    return torch.randn(batch, 1, *((2, 32, 32) if "MT-UNet" in name else SMALL["patch_size"]))


def trace_on_cpu(network, x):
    return trace_network(network, 1, x.shape[2:], x.shape[0], device="cpu", autocast=False)


@pytest.mark.parametrize("name", [name for name in MAKERS if "checkpointed" not in name])
def test_saved_bytes_are_those_of_saved_tensor_hooks_in_a_real_run(name):
    """Hooks do not see into checkpointed regions; the next test does."""
    network, x = MAKERS[name](), batch_for(name)
    at_rest = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in at_rest:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = mean_of_outputs(network, x)
    counted = sum(saved.values())
    assert loss.isfinite()
    assert trace_on_cpu(network, x).saved == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_peak_is_that_of_a_real_step(name):
    """The same bookkeeping around real tensors and PyTorch's own engine."""
    network, x = MAKERS[name](), batch_for(name)
    peak = real_peak(network, x)
    traced = trace_on_cpu(network, x)
    assert traced.total == pytest.approx(peak, rel=1e-3)
    parts = traced.parameters + traced.optimiser_state + max(traced.saved, traced.gradients) + traced.transient
    assert traced.total == parts
    assert min(vars(traced).values()) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_run_backward_gives_the_gradients_of_pytorch(name, assert_close, monkeypatch):
    network, x = MAKERS[name](), batch_for(name)
    state = torch.get_rng_state()
    mean_of_outputs(network, x).backward()
    expected = [p.grad for p in network.parameters()]
    network.zero_grad()
    torch.set_rng_state(state)  # of dropout
    monkeypatch.setattr("torch._C._current_graph_task_id", lambda: 1)
    with nodes_kept():
        loss = mean_of_outputs(network, x)
    run_backward(loss)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None and gradient.abs().max() > 1e-9:
            assert_close(parameter.grad, gradient, 1e-5)


def test_known_memory_of_nnunet_at_its_default_patch():
    """3.64 GB of activations under 16-bit autocast, measured before with saved-tensor hooks."""
    network = unet((32, 64, 128, 256, 320, 320))
    traced = trace_network(network, 1, (128,) * 3, 2)
    assert traced.saved / 1e9 == pytest.approx(3.64, rel=0.02)
    weights = 4 * sum(p.numel() for p in network.parameters())
    assert traced.parameters == weights
    assert traced.optimiser_state == weights
    assert traced.gradients == pytest.approx(weights, abs=4096)


@pytest.mark.parametrize(
    "name", ["SASAN", pytest.param("EM-Net", marks=pytest.mark.slow), pytest.param("LSTMSA", marks=LONG)]
)
def test_a_trace_of_128_cubed_takes_less_than_20_seconds(name):
    network = {"SASAN": SASAN, "EM-Net": EMNet, "LSTMSA": LSTMSA}[name]
    sizes = {"patch_size": (128,) * 3, "n_stages": 5, "features_per_stage": (32, 64, 128, 256, 320)}
    started = time.process_time()  # of one thread; what else the machine does is no matter
    assert trace_network(network(**SMALL | sizes), 1, (128,) * 3, 2).total > 3e9
    assert time.process_time() - started < 20


@pytest.mark.parametrize("name", QUICK)
def test_memory_is_affine_in_the_batch_size(name):
    network, patch = MAKERS[name](), batch_for(name).shape[2:]
    two, three, four = (trace_network(network, 1, patch, n).saved for n in (2, 3, 4))
    assert four - three == pytest.approx(three - two, rel=0.01)


def test_autocast_halves_what_convolutions_save():
    network = unet()
    half, single = (trace_network(network, 1, SMALL["patch_size"], 2, autocast=on).saved for on in (True, False))
    assert 0.45 < half / single < 0.7


def test_the_optimisers_state_is_its_own():
    def adam(parameters):
        return torch.optim.Adam(parameters, 1e-4)

    network = unet()
    traced = trace_network(network, 1, SMALL["patch_size"], 2, adam)
    steps = 4 * len(list(network.parameters()))
    assert traced.optimiser_state == 2 * traced.parameters + steps


class Toy(nn.Module):
    """Two tied layers; every tensor it saves has the size of the batch."""

    def __init__(self, width, checkpointed):
        super().__init__()
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.second.weight = self.first.weight
        self.checkpointed = checkpointed

    def forward(self, x):
        def layers(x):
            y = self.second(torch.tanh(self.first(x))).sin()
            return y.view(-1) * y.reshape(-1)  # saves one storage twice

        return checkpoint(layers, x, use_reentrant=False) if self.checkpointed else layers(x)


def test_shared_storages_count_once_and_checkpoints_keep_their_inputs_only():
    width, rows = 10, 400
    size = 4 * 2 * rows * width
    plain, kept = (
        trace_network(Toy(width, on), rows, (width,), 2, device="cpu", autocast=False) for on in (False, True)
    )
    assert plain.parameters == plain.gradients == 4 * width**2
    # x, what tanh gives, what sin gets, what it gives, and the output; a few bytes of the mean.
    assert plain.saved == pytest.approx(5 * size, abs=64)
    assert kept.saved == pytest.approx(2 * size, abs=64)
    assert kept.transient > plain.transient


def test_a_trace_ends_at_its_limit():
    network = unet()
    total = trace_network(network, 1, SMALL["patch_size"], 2).total
    assert trace_network(network, 1, SMALL["patch_size"], 2, limit=total).total == total
    with pytest.raises(LimitExceeded, match="bytes are more than"):
        trace_network(network, 1, SMALL["patch_size"], 2, limit=total - 1)


def test_the_network_stays_as_it_is():
    network = unet()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trace_network(network, 1, SMALL["patch_size"], 2)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in network.parameters())


def test_packages_with_kernels_of_their_own_stay_out_of_a_trace(monkeypatch):
    """mamba_ssm and causal_conv1d read memory, which fake tensors do not have."""
    network = EMNet(**SMALL)
    plain = trace_network(network, 1, SMALL["patch_size"], 2)
    monkeypatch.setattr("nnunet_ext.ops.mamba_ssm_scan.why_unusable", lambda: None)
    monkeypatch.setattr(sys.modules["nnunet_ext.ops.causal_conv1d"], "_package_usable", lambda: True)
    assert trace_network(network, 1, SMALL["patch_size"], 2) == plain


DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()


def test_the_trace_was_right_when_it_was_measured():
    """The tests of the results page check that docs/planning.md shows the file."""
    with (Path(__file__).parents[2] / "benchmarks" / "results" / "planned_memory_cpu.csv").open() as file:
        assert all(abs(float(row["traced_to_measured"]) - 1) < 0.1 for row in csv.DictReader(file))


def test_the_documentations_example_runs(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENTATION, re.S)
    exec(compile(snippet, "planning.md", "exec"), {})
    assert "saved=" in capsys.readouterr().out
