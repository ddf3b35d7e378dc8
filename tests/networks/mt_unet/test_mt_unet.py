from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.cli.main import main
from nnunet_ext.networks import MTUNet
from nnunet_ext.networks.mt_unet.authors_weights import authors_names
from nnunet_ext.networks.mt_unet.gaussian_attention import (
    GaussianAxialAttention,
)
from nnunet_ext.networks.mt_unet.mixed_attention import ExternalAttention
from nnunet_ext.weights import from_authors
from tests.helpers.mt_unet import FROZEN, learning
from tests.helpers.small_networks import MT_UNET as SMALL


def test_network_agrees_with_the_authors(golden, assert_close):
    file = golden("mt_unet")
    network = from_authors("mt_unet", file.state_dict)
    assert (network.patch_size, network.input_channels) == ((96, 96), 1)
    with torch.no_grad():
        assert_close(network(file["x"]), file["y"], 1e-5)
        assert_close(network.double()(file["x"].double()), file["y"].double(), 1e-5)


def test_parameter_count_of_the_authors():
    """The authors have 80,718,392 with SALSTM's head: two 5x5 convolutions, 128 to 256 channels, and a 1x1 to 4."""
    with torch.device("meta"):
        counted = sum(p.numel() for p in MTUNet(1, 64, 224).parameters())
    assert counted == 80_718_392 - 2 * (128 * 256 * 25 + 256) - (128 * 4 + 4)


@pytest.mark.parametrize("patch_size", [(32, 32), (32, 64), (96, 64), (64, 160)])
@pytest.mark.parametrize("input_channels", [1, 2, 3])
def test_any_size_and_channels(patch_size, input_channels):
    network = MTUNet(**(SMALL | {"patch_size": patch_size, "input_channels": input_channels}))
    y = network(torch.randn(2, input_channels, *patch_size))
    assert y.shape == (2, 3, *patch_size)
    assert y.isfinite().all()
    (y * torch.randn_like(y)).sum().backward()
    assert [k for k, p in learning(network).items() if p.grad is None or not p.grad.isfinite().all()] == []


def test_every_parameter_moves_the_output_where_there_are_several_windows():
    """At 224 pixels the lowest level has 2 x 2 windows; so does this network, with smaller windows."""
    network = MTUNet(**(SMALL | {"patch_size": (96, 128), "window": 2}))
    y = network(torch.randn(2, 1, 96, 128))
    (y * torch.randn_like(y)).sum().backward()
    idle = [k for k, p in learning(network).items() if p.grad is None or (p.grad == 0).all()]
    assert [k for k in idle if not k.endswith("conv.bias")] == []  # those before a batch norm
    assert all(p.grad is None for k, p in network.named_parameters() if k.endswith(FROZEN))


def test_one_channel_is_three_equal_ones(assert_close):
    network, colour = (MTUNet(**(SMALL | {"input_channels": n})).eval() for n in (1, 3))
    colour.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 96, 64)
    assert_close(network(x), colour(x.repeat(1, 3, 1, 1)), 1e-6)


def test_samples_and_memory_layouts_do_not_matter(assert_close):
    network = MTUNet(**(SMALL | {"input_channels": 2})).eval()
    x = torch.randn(3, 2, 96, 64)
    with torch.no_grad():
        together = network(x)
        assert_close(torch.cat([network(sample[None]) for sample in x]), together, 1e-5)
        assert_close(network(x.to(memory_format=torch.channels_last)), together, 1e-5)
        assert_close(network.to(memory_format=torch.channels_last)(x), together, 1e-5)


def test_deep_supervision_is_a_list_of_the_one_output(assert_close):
    network = MTUNet(**SMALL, deep_supervision=True).eval()
    x = torch.randn(1, 1, 96, 64)
    (listed,) = network(x)
    network.decoder.deep_supervision = False
    assert_close(network(x), listed, 1e-6)


def test_the_number_of_classes_shows_under_seg_layers_only():
    shapes = [{k: v.shape for k, v in MTUNet(**(SMALL | {"num_classes": n})).state_dict().items()} for n in (2, 5)]
    assert {k for k in shapes[0] if shapes[0][k] != shapes[1][k]} == {
        f"decoder.seg_layers.0.{kind}" for kind in ("weight", "bias")
    }


def test_a_plans_arguments_are_taken():
    network = MTUNet(
        input_channels=2,
        num_classes=4,
        patch_size=[64, 96],
        n_stages=6,
        features_per_stage=[4, 4, 4, 4, 4, 4],
        conv_op=nn.Conv2d,
        kernel_sizes=[[3, 3]] * 6,
        strides=[[1, 1]] + [[2, 2]] * 5,
        heads=1,
    )
    assert network(torch.randn(2, 2, 64, 96)).shape == (2, 4, 64, 96)
    assert MTUNet(**(SMALL | {"strides": 2})).patch_size == (96, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": (96, 80)}, r"`patch_size\[1\]`=80 must be divisible by 32; nearest: 64 and 96"),
        ({"patch_size": 16}, r"`patch_size\[0\]`=16 must be divisible by 32; nearest: 32"),
        ({"conv_op": nn.Conv3d}, r"MT-UNet is 2D only \(LSTM-SA applies it slice by slice"),
        ({"n_stages": 5}, r"`n_stages`=5 must be 6"),
        ({"features_per_stage": (4, 6, 8)}, r"`features_per_stage` must have 6 entries"),
        ({"kernel_sizes": 5}, r"`kernel_sizes`=.* must be 3 throughout"),
        ({"kernel_sizes": [3, 3, 3, 3, 3, (1, 3)]}, r"`kernel_sizes`=.* must be 3 throughout"),
        ({"strides": (1, 2, 2, 2, 2, 1)}, r"`strides`=.* must be \(1, 2, 2, 2, 2, 2\) on both axes"),
        ({"heads": 3}, r"`heads`=3 must divide the width 8; its divisors: \[1, 2, 4, 8\]"),
        ({"heads": 0}, r"`heads`=0 must divide the width 8"),
        ({"window": 0}, r"`window`=0 must be at least 1"),
        ({"num_classes": 0}, r"`num_classes`=0 must be at least 1"),
        ({"input_channels": 0}, r"`input_channels`=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        MTUNet(**(SMALL | arguments))


def test_another_size_is_an_error_that_names_both():
    network = MTUNet(**SMALL)
    with pytest.raises(ValueError, match=r"\(B, 1, 96, 64\), got \(1, 1, 64, 96\)"):
        network(torch.randn(1, 1, 64, 96))
    with pytest.raises(ValueError, match=r"\(B, 1, 96, 64\), got \(1, 3, 96, 64\)"):
        network(torch.randn(1, 3, 96, 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("magnitude", [1, 100])
@pytest.mark.parametrize("training", [True, False])
def test_low_precision_stays_finite(dtype, magnitude, training):
    network = MTUNet(**SMALL).train(training)
    with torch.autocast("cpu", dtype=dtype):
        y = network(magnitude * torch.randn(2, 1, 96, 64))
    assert y.isfinite().all()
    y.float().square().mean().backward()
    assert [k for k, p in learning(network).items() if not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_scores_and_softmaxes(dtype, assert_close):
    """Unscaled scores beyond float16's range, and softmaxes that must add up to 1."""
    attention = GaussianAxialAttention(4)
    nn.init.eye_(attention.qkv.weight[:4].detach())
    nn.init.eye_(attention.qkv.weight[4:8].detach())
    x = 256 * torch.ones(1, 3, 2, 4)  # exact in both precisions; scores are 2^18
    with torch.autocast("cpu", dtype=dtype):
        y = attention(x)
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    external = ExternalAttention(4, 1)
    sums = []
    external.values.register_forward_pre_hook(lambda _, inputs: sums.append(inputs[0].sum(-1)))
    with torch.autocast("cpu", dtype=dtype):
        external(torch.randn(1, 999, 4))
    assert_close(sums[0], torch.ones(1, 999, 4), 1e-4)


def as_authors(network):
    """Weights with the authors' names and shapes, including the counter of their batch norms."""
    state, out = network.state_dict(), {}
    for ours, theirs in authors_names().items():
        for key, value in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            out[key] = value[..., None, None] if key.endswith("queeze.weight") else value
    return out | {"stem.model.res1.conv.0.bn.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize("settings", [{}, {"heads": 4, "window": 2, "input_channels": 2}])
def test_sizes_are_read_off_the_tensors(settings, assert_close):
    network = MTUNet(**(SMALL | {"patch_size": 64} | settings))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    imported = from_authors("mt_unet", as_authors(network))
    x = torch.randn(1, network.input_channels, 64, 64)
    assert_close(imported(x), network.eval()(x), 1e-6)


def test_patches_that_the_authors_code_does_not_take_are_refused():
    state = as_authors(MTUNet(**SMALL))
    with pytest.raises(ValueError, match=r"96 tokens do not form a square: the authors' code takes only square images"):
        from_authors("mt_unet", state)
    with pytest.raises(ValueError, match=r"`patch_size`=\(96, 64\): the authors' code takes only square images"):
        from_authors("mt_unet", state, patch_size=(96, 64))
    with pytest.raises(ValueError, match=r"downsampling\.3\.2\.pos \(1, 96, 8\) instead of \(1, 64, 8\)"):
        from_authors("mt_unet", state, patch_size=64)


def test_missing_extra_and_misshapen_tensors_are_listed(golden):
    file = golden("mt_unet")
    state = dict(file.state_dict)
    state["stray.weight"] = state.pop("bottleneck.1.CSAttention.gaussiantrans.shift")
    with pytest.raises(ValueError, match=r"MT-UNet weights: keys 1 missing: bottleneck\.1\.CSA.*shift; 1 extra: stray"):
        from_authors("mt_unet", state)
    state = file.state_dict | {"SegmentationHead.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"wrong shape: decoder\.seg_layers\.0\.bias \(7,\) instead of \(5,\)"):
        from_authors("mt_unet", state)
    key = "bottleneck.0.CSAttention.global_atten.key_layer.weight"
    with pytest.raises(ValueError, match=r"different shapes: .*key_layer\.weight \(32, 31\)"):
        from_authors("mt_unet", file.state_dict | {key: torch.zeros(32, 31)})
    with pytest.raises(ValueError, match=r"missing: SegmentationHead\.bias"):
        from_authors("mt_unet", {})
    with pytest.raises(ValueError, match=r"mt_unet has no setting heads; its settings: patch_size"):
        from_authors("mt_unet", {}, heads=4)


def test_names_map_every_tensor_once_under_any_prefix():
    network = MTUNet(**SMALL)
    names = authors_names("backbone.", "encoder.")
    stored = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    assert sorted(names) == sorted(f"backbone.{k}" for k in stored)
    theirs = sorted(k for keys in names.values() for k in keys)
    assert all(a != b for a, b in pairwise(theirs))
    assert all(k.startswith("encoder.") for k in theirs)


def test_import_weights_knows_it(tmp_path, capsys):
    network = MTUNet(**(SMALL | {"patch_size": 64}))
    torch.save(as_authors(network), tmp_path / "authors.pth")
    command = ["import-weights", "mt_unet", str(tmp_path / "authors.pth"), str(tmp_path / "ours.pth")]
    assert main([*command, "--patch-size", "64", "64"]) == 0
    assert "MTUNet" in capsys.readouterr().out
    network.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True)["network_weights"])


def test_training_lowers_the_loss():
    network = MTUNet(**(SMALL | {"patch_size": 32}))
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    target = torch.zeros(4, 32, 32, dtype=torch.long)
    target[:, 8:20, 8:24] = 1
    target[:, 16:20, 8:24] = 2
    x = target[:, None].float() + 0.1 * torch.randn(4, 1, 32, 32)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = F.cross_entropy(network(x), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_equals_cpu_and_low_precision_trains(dtype, monkeypatch, assert_close):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = MTUNet(**SMALL).eval()
    x = torch.randn(2, 1, 96, 64)
    expected = network(x)
    network.cuda()
    assert_close(network(x.cuda()).cpu(), expected, 1e-3)
    network.train()
    with torch.autocast("cuda", dtype=dtype):
        y = network(x.cuda())
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in learning(network).values())
