from math import ceil

import pytest
import torch
from torch import nn

from nnunet_ext.cli.main import main
from nnunet_ext.networks import UMamba
from nnunet_ext.networks.from_plan import network_from_plan
from nnunet_ext.networks.u_mamba import VARIANTS
from nnunet_ext.networks.u_mamba.authors_weights import authors_names
from nnunet_ext.networks.u_mamba.mamba_layer import MambaLayer
from nnunet_ext.networks.u_mamba.residual_block import ResidualBlock
from nnunet_ext.weights import from_authors
from tests.networks.u_mamba.plain import plain_forward

GOLDEN = ("bot", "enc", "bot_2d", "enc_2d")
SMALL = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (8, 16, 16),
    "n_stages": 4,
    "features_per_stage": (4, 6, 8, 10),
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": 2,
}
ANISOTROPIC = {
    "patch_size": (4, 32, 16),
    "n_stages": 5,
    "features_per_stage": (4, 6, 8, 10, 16),
    "kernel_sizes": [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
    "strides": [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 1), (1, 2, 2)],
}
FLAT = {"conv_op": nn.Conv2d, "patch_size": (16, 24), "input_channels": 2}


@pytest.mark.parametrize("name", GOLDEN)
def test_agrees_with_the_authors_in_values_and_gradient(name, golden, assert_close):
    file = golden(f"umamba_{name}")
    network = from_authors(f"umamba_{name[:3]}", file.state_dict, patch_size=file.meta["patch"], strides=2).double()
    x = file["x"].double().requires_grad_()
    outputs = network(x)
    assert len(outputs) == 3
    for i, actual in enumerate(outputs):
        assert_close(actual, file[f"y{i}"].double(), 1e-5)
    sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() for y in outputs).backward()
    assert_close(x.grad, file["grad_x"].double(), 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("arguments", [{}, ANISOTROPIC, FLAT, FLAT | {"n_stages": 3, "features_per_stage": 4}])
def test_agrees_with_a_plain_transcription_in_values_and_gradients(variant, arguments, assert_close):
    network = UMamba(**SMALL | arguments, variant=variant, deep_supervision=True).double()
    x = torch.randn(2, network.input_channels, *network.patch_size, dtype=torch.float64, requires_grad=True)
    results = network(x), plain_forward(network, x)
    weights = [torch.randn_like(y) for y in results[1]]
    leaves = [x, *(p for k, p in network.named_parameters() if not k.endswith("conv.bias"))]  # norms take biases away
    gradients = []
    for outputs in results:
        loss = sum((y * weight).sum() for y, weight in zip(outputs, weights, strict=True))
        gradients.append(torch.autograd.grad(loss, leaves))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-9)
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize(
    ("n_stages", "axes", "expected"),
    [(4, 3, [0, 1, 2, 3]), (4, 2, [1, 3]), (5, 2, [0, 2, 4]), (2, 2, [1]), (3, 2, [0, 2]), (6, 2, [1, 3, 5])],
)
def test_variants_say_which_stages_have_a_layer(n_stages, axes, expected):
    assert list(VARIANTS["Enc"].stages(n_stages, axes)) == expected
    assert list(VARIANTS["Bot"].stages(n_stages, axes)) == [n_stages - 1]
    assert list(VARIANTS["no_mamba"].stages(n_stages, axes)) == []


@pytest.mark.parametrize("n_stages", [2, 3, 4, 5])
def test_the_deeper_half_has_one_block_a_stage(n_stages):
    stages = {"n_stages": n_stages, "features_per_stage": 4, "patch_size": 32}
    network = UMamba(**SMALL | stages, n_conv_per_stage=3, n_conv_per_stage_decoder=4, variant="Bot")
    half = ceil(n_stages / 2)
    assert len(network.encoder.stem) == 3
    assert [len(stage) for stage in network.encoder.stages] == [3] * half + [1] * (n_stages - half)
    upwards = network.decoder.stages[::-1]
    # As the page counts them: from the lowest, 1 from ceil((S - 1) / 2 + 0.5) on.
    first = ceil((n_stages - 1) / 2 + 0.5)
    assert [len(stage) for stage in upwards] == [4 if i < first else 1 for i in range(n_stages - 1)]


def test_channels_are_tokens_where_voxels_are_as_few():
    """2 x 2 x 2 voxels at the lowest stage."""
    for width, expected in ((7, [False] * 4), (8, [False, False, False, True])):
        network = UMamba(**SMALL | {"patch_size": 16, "features_per_stage": (4, 6, 7, width)}, variant="Enc")
        layers = [module for module in network.modules() if isinstance(module, MambaLayer)]
        assert [layer.channel_tokens for layer in layers] == expected
    (layer,) = (m for m in UMamba(**SMALL | {"patch_size": 16}, variant="Bot").modules() if isinstance(m, MambaLayer))
    assert not layer.channel_tokens


def test_the_twin_differs_by_the_layer_alone(assert_close):
    bot, twin = (UMamba(**SMALL, variant=variant).eval() for variant in ("Bot", "no_mamba"))
    weights = {k: v for k, v in bot.state_dict().items() if "mamba_layers" not in k}
    assert weights.keys() == twin.state_dict().keys()
    twin.load_state_dict(weights)
    bot.encoder.mamba_layers.clear()
    x = torch.randn(1, 1, 8, 16, 16)
    assert_close(bot(x), twin(x), 1e-6)


def test_convolutions_begin_as_published():
    """He initialisation for LeakyReLU with slope 0.01; Mamba's is that of its authors."""
    network = UMamba(**SMALL | {"features_per_stage": 32}, deep_supervision=True)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            assert (module.bias == 0).all()
        if isinstance(module, nn.Conv3d) and module.weight.numel() > 5000:
            expected = (2 / (1 + 0.01**2) / module.weight[0].numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert all(layer.mamba.directions[0].conv1d.bias.abs().max() > 0 for layer in network.encoder.mamba_layers.values())


@pytest.mark.parametrize("variant", ["Bot", "no_mamba"])
def test_without_channels_as_tokens_every_size_is_taken_that_the_strides_divide(variant):
    network = UMamba(**SMALL, variant=variant)
    assert network(torch.randn(1, 1, 16, 24, 8)).shape == (1, 3, 16, 24, 8)
    for wrong in ((1, 1, 16, 20, 8), (1, 2, 16, 24, 8), (1, 1, 16, 24)):
        with pytest.raises(ValueError, match=r"\(B, 1, and 3 sizes divisible by 8, 8, 8\), got \(1, "):
            network(torch.randn(wrong))


def test_results_of_mamba_are_limited_under_float16_alone():
    layer = MambaLayer(6, (4, 4, 4), channel_tokens=False)
    nn.init.constant_(layer.norm.weight, 100)
    x = torch.randn(2, 6, 4, 4, 4)
    expected = layer(x)
    assert expected.abs().max() > 65504  # float16's largest number
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(layer(x), expected.clamp(-1024, 1024))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "Mid"}, r"unknown `variant` 'Mid'; known: Enc, Bot, no_mamba"),
        ({"patch_size": 8}, r"`patch_size`=\(8, 8, 8\) leaves one voxel at the lowest stage"),
        ({"patch_size": (8, 12, 16)}, r"`patch_size\[1\]`=12 must be divisible by 8; nearest: 8 and 16"),
        ({"n_conv_per_stage": (2, 2)}, r"`n_conv_per_stage` must have 4 entries \(stages\), got 2"),
        ({"n_conv_per_stage_decoder": (2, 2)}, r"`n_conv_per_stage_decoder` must have 3 entries \(stages\), got 2"),
        ({"n_conv_per_stage": 0}, r"`n_conv_per_stage`=\(0, 0, 0, 0\) must be positive"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        UMamba(**SMALL | arguments)


class Configuration:
    """The numbers of convolutions come from nnU-Net's plan for its U-Net."""

    network_arch_class_name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    network_arch_init_kwargs_req_import = ("conv_op",)
    patch_size = SMALL["patch_size"]
    network_arch_init_kwargs = {
        **{key: SMALL[key] for key in ("n_stages", "features_per_stage", "kernel_sizes", "strides")},
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "n_conv_per_stage": [3, 2, 2, 2],
        "n_conv_per_stage_decoder": [1, 1, 1],
    }


def test_numbers_of_blocks_are_the_plans():
    network = network_from_plan(UMamba, Configuration(), 1, 3, deep_supervision=True, variant="Bot")
    assert [len(stage) for stage in network.encoder.stages] == [3, 2, 1, 1]
    assert [len(stage) for stage in network.decoder.stages] == [1, 1, 1]


def as_authors(network):
    """Weights under the authors' names, with the second names that their modules have."""
    ours = network.state_dict()
    state = {theirs: ours[name] for name, theirs in authors_names(network).items()}
    twice = {k.replace(".conv.", ".all_modules.0."): v for k, v in state.items() if k.startswith("encoder.")}
    return state | twice | {f"decoder.{k}": v for k, v in state.items() if k.startswith("encoder.")}


@pytest.mark.parametrize("variant", ["Bot", "Enc"])
@pytest.mark.parametrize("arguments", [{"n_conv_per_stage": 3}, ANISOTROPIC, FLAT])
def test_weights_of_any_plan_are_imported(variant, arguments, assert_close):
    network = UMamba(**SMALL | arguments, variant=variant, deep_supervision=True).eval()
    settings = {"patch_size": network.patch_size, "strides": arguments.get("strides", 2)}
    imported = from_authors(f"umamba_{variant.lower()}", as_authors(network), **settings)
    x = torch.randn(1, network.input_channels, *network.patch_size)
    for a, b in zip(imported(x), network(x), strict=True):
        assert_close(a, b, 1e-6)


def test_patches_that_tensors_show_need_not_be_given(golden):
    for name in ("umamba_bot", "umamba_enc"):
        for strides in (2, [2], [1, 2, 2, 2]):
            assert from_authors(name, golden(name).state_dict, strides=strides).patch_size == (16, 16, 16)
    with pytest.raises(ValueError, match=r"the tensors do not show the patch size.*`patch_size` must be given"):
        from_authors("umamba_enc", golden("umamba_enc_2d").state_dict, strides=2)


def test_strides_are_not_assumed_where_kernels_differ(golden):
    """With other strides the same tensors fit a network that computes something else."""
    network = UMamba(**SMALL | ANISOTROPIC, variant="Bot", deep_supervision=True)
    with pytest.raises(ValueError, match=r"the kernels differ between the axes.*`strides` must be given"):
        from_authors("umamba_bot", as_authors(network), patch_size=network.patch_size)
    state = golden("umamba_bot").state_dict
    x = torch.randn(1, 1, 16, 16, 16)
    assumed, given = (from_authors("umamba_bot", state, **further)(x)[0] for further in ({}, {"strides": 2}))
    other = from_authors("umamba_bot", state, patch_size=16, strides=[(1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2)])
    assert torch.equal(assumed, given)
    assert (other(x)[0] - given).abs().max() > 1e-3


def test_other_weights_are_refused(golden):
    state = dict(golden("umamba_bot").state_dict)
    with pytest.raises(
        ValueError,
        match=r"these are not the authors' UMambaEnc weights: keys 44 missing: .* and 39 more; 11 extra: mamba_l",
    ):
        from_authors("umamba_enc", state, patch_size=16, strides=2)
    with pytest.raises(ValueError, match=r"UMambaBot weights: keys 4 missing: decoder\.seg_layers\.0\.weight, .*stem"):
        from_authors("umamba_bot", {}, strides=2)
    state["stray.weight"] = state.pop("mamba_layer.mamba.D")
    with pytest.raises(ValueError, match=r"keys 1 missing: mamba_layer\.mamba\.D; 1 extra: stray\.weight"):
        from_authors("umamba_bot", state, strides=2)
    state = dict(golden("umamba_bot").state_dict)
    state["decoder.encoder.stem.0.conv1.bias"] = torch.ones(4)
    with pytest.raises(ValueError, match=r"decoder\.encoder\.stem\.0\.conv1\.bias differs from encoder\.stem\.0"):
        from_authors("umamba_bot", state, strides=2)


def test_import_weights_takes_strides(tmp_path, capsys):
    network = UMamba(**SMALL | ANISOTROPIC, variant="Enc", deep_supervision=True)
    torch.save(as_authors(network), tmp_path / "authors.pth")
    command = ["import-weights", "umamba_enc", str(tmp_path / "authors.pth"), str(tmp_path / "ours.pth")]
    strides = [",".join(map(str, stride)) for stride in ANISOTROPIC["strides"]]
    assert main([*command, "--patch-size", "4", "32", "16", "--strides", *strides]) == 0
    assert "train with -tr UMambaEncTrainer" in capsys.readouterr().out
    network.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True)["network_weights"])


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_equals_cpu_and_low_precision_trains(variant, dtype, monkeypatch, assert_close):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = UMamba(**SMALL, variant=variant).eval()
    x = torch.randn(2, 1, 8, 16, 16)
    expected = network(x)
    network.cuda()
    assert_close(network(x.cuda()).cpu(), expected, 1e-3)
    network.train()
    with torch.autocast("cuda", dtype=dtype):
        out = network(x.cuda())
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


HOOKED = ("conv1", "conv1.norm_act", "conv2", "conv2.norm_act")


@pytest.mark.parametrize(
    ("projection", "inner"),
    [(False, inner) for inner in HOOKED] + [(True, inner) for inner in (*HOOKED, "shortcut")],
)
def test_a_single_hook_keeps_what_it_saw(inner, projection):
    block = ResidualBlock(nn.Conv3d, 6, 6, (3, 3, 3), projection=projection)
    seen = []
    block.get_submodule(inner).register_forward_hook(lambda module, inputs, y: seen.append((y, y.clone())))
    with torch.no_grad():
        block(torch.randn(2, 6, 8, 8, 8).to(memory_format=torch.channels_last_3d))
    assert [torch.equal(now, then) for now, then in seen] == [True]
