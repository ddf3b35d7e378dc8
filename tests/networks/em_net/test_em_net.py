import pytest
import torch
from torch import nn

from benchmarks.plain.em_net import plain_forward
from nnunet_ext.cli.main import main
from nnunet_ext.networks import NETWORKS, EMNet
from nnunet_ext.networks.em_net import VARIANTS
from nnunet_ext.networks.em_net.authors_weights import authors_names
from nnunet_ext.weights import from_authors

SMALL = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (8, 12, 16),
    "n_stages": 3,
    "features_per_stage": (4, 6, 8),
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": (1, 2, 2),
}


def parameters(**arguments):
    with torch.device("meta"):
        return sum(p.numel() for p in EMNet(**arguments).parameters())


def test_agrees_with_the_authors_in_values_and_gradient(golden, assert_close):
    file = golden("em_net")
    network = from_authors("em_net", file.state_dict).double()
    assert network.patch_size == (64, 64, 64)
    x = file["x"].double().requires_grad_()
    outputs = network(x)
    centre = (slice(None), slice(None), *(slice(20, 44),) * 3)
    for actual, name in zip((outputs[0][centre], *outputs[1:]), ("y0_centre", "y1", "y2"), strict=True):
        assert_close(actual, file[name].double(), 1e-6)
    sum((y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum() for y in outputs).backward()
    assert_close(x.grad[centre], file["grad_x_centre"].double(), 1e-5)


@pytest.mark.parametrize(
    ("variant", "expected"), [("EM-Net", 39_409_425), ("A", 62_085_105), ("B", 60_908_985), ("C", 38_233_305)]
)
def test_parameter_counts_of_the_paper(variant, expected):
    assert parameters(variant=variant, **NETWORKS["em_net"].paper) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"variant": "C"},
        {"variant": "C", "efl_layout": "authors", "input_channels": 2},
        {"variant": "no_mamba"},
        {"conv_op": nn.Conv2d, "patch_size": (16, 24)},
        {"patch_size": (3, 16, 24), "strides": [(1, 1, 1), (1, 4, 4), (1, 2, 2)]},
    ],
)
def test_agrees_with_a_plain_transcription_in_values_and_gradients(arguments, assert_close):
    network = EMNet(**(SMALL | arguments)).double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.3)
    for module in network.modules():
        if isinstance(module, (nn.Dropout2d, nn.Dropout3d)):
            module.p = 0.0  # the two forms would draw different dropout masks
    x = torch.randn(2, network.input_channels, *network.patch_size, dtype=torch.float64, requires_grad=True)
    outputs = network(x), plain_forward(network, x)
    assert_close(*outputs, 1e-9)
    weight = torch.randn_like(outputs[1])
    leaves = [x, *network.parameters()]
    ours, plain = (torch.autograd.grad((y * weight).sum(), leaves) for y in outputs)
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, 1e-6)


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
def test_variants_say_which_stages_filter(stages):
    half = stages // 2
    layers = {name: variant.efl_layers(stages) for name, variant in VARIANTS.items()}
    deep = (0,) * (stages - half) + (2,) * half
    assert layers == {
        "EM-Net": deep,
        "A": (0,) * stages,
        "B": (2,) * half + (0,) * (stages - half),
        "C": (2,) * stages,
        "no_mamba": deep,
    }


@pytest.mark.parametrize("efl_layout", ["spatial", "authors"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"patch_size": (40, 56, 40), "strides": (1, 4, 2), "input_channels": 2},
        {"patch_size": (56, 40), "strides": (1, 4, 2), "conv_op": nn.Conv2d, "input_channels": 2},
        {"patch_size": (3, 16, 24), "strides": [(1, 1, 1), (1, 4, 4), (1, 2, 2)]},
        {
            "patch_size": (6, 16, 8),
            "n_stages": 4,
            "features_per_stage": (4, 6, 8, 10),
            "strides": [(1, 1, 1), (1, 2, 2), (1, 2, 1), (2, 2, 2)],
            "kernel_sizes": [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)],
            "variant": "C",
        },
        {"variant": "B"},
        {"variant": "no_mamba"},
    ],
)
def test_any_patch_and_strides(arguments, efl_layout):
    arguments = SMALL | arguments
    network = EMNet(**arguments, efl_layout=efl_layout, deep_supervision=True)
    outputs = network(torch.randn(2, arguments["input_channels"], *arguments["patch_size"]))
    size, expected = arguments["patch_size"], []
    for stride in arguments["strides"][:-1]:
        stride = (stride,) * len(size) if isinstance(stride, int) else stride
        size = tuple(p // s for p, s in zip(size, stride, strict=True))
        expected.append((2, 3, *size))
    assert [tuple(o.shape) for o in outputs] == expected
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()
    assert [k for k, p in network.named_parameters() if (p.grad == 0).all() or not p.grad.isfinite().all()] == []


def test_both_layouts_have_the_same_parameters_and_differ(assert_close):
    spatial, authors = (EMNet(**SMALL, efl_layout=layout).eval() for layout in ("spatial", "authors"))
    authors.load_state_dict(spatial.state_dict())
    x = torch.randn(1, 1, 8, 12, 16)
    assert (spatial(x) - authors(x)).abs().max() > 1e-3


def test_outputs_chooses_how_many_heads_there_are(assert_close):
    arguments = SMALL | {"n_stages": 4, "features_per_stage": 6, "strides": 2, "patch_size": (8, 16, 16)}
    network = EMNet(**arguments, outputs=2, deep_supervision=True).eval()
    assert len(network.decoder.seg_layers) == 2
    x = torch.randn(1, 1, 8, 16, 16)
    outputs = network(x)
    assert [o.shape[2:] for o in outputs] == [(8, 16, 16), (4, 8, 8)]
    single = EMNet(**arguments, outputs=2).eval()
    single.load_state_dict(network.state_dict())
    assert_close(single(x), outputs[0], 1e-6)
    assert len(EMNet(**arguments, outputs=1, deep_supervision=True)(x)) == 1


def test_asking_for_heads_that_were_not_built_is_an_error():
    network = EMNet(**SMALL)
    network.decoder.deep_supervision = True
    with pytest.raises(ValueError, match=r"built with `deep_supervision=False`"):
        network(torch.randn(1, 1, 8, 12, 16))


def test_the_number_of_classes_shows_under_seg_layers_only():
    shapes = [
        {k: v.shape for k, v in EMNet(**(SMALL | {"num_classes": n}), deep_supervision=True).state_dict().items()}
        for n in (2, 5)
    ]
    assert {k for k in shapes[0] if shapes[0][k] != shapes[1][k]} == {
        f"decoder.seg_layers.{i}.{kind}" for i in range(2) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "D"}, r"unknown `variant` 'D'; known: EM-Net, A, B, C, no_mamba"),
        ({"efl_layout": "paper"}, r"unknown `efl_layout` 'paper'; known: spatial, authors"),
        ({"n_stages": 2, "features_per_stage": 4, "strides": 2}, r"`n_stages`=2 must be at least 3"),
        ({"outputs": 0}, r"`outputs`=0 must be from 1 to 2"),
        ({"outputs": 3}, r"`outputs`=3 must be from 1 to 2"),
        ({"patch_size": 4}, r"`patch_size`=\(4, 4, 4\) leaves one voxel at the lowest stage"),
        ({"patch_size": (8, 10, 16)}, r"`patch_size\[1\]`=10 must be divisible by 4; nearest: 8 and 12"),
        ({"features_per_stage": (4, 6)}, r"`features_per_stage` must have 3 entries"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMNet(**(SMALL | arguments))


def test_training_lowers_the_loss():
    network = EMNet(**SMALL)
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    target = torch.zeros(2, 8, 12, 16, dtype=torch.long)
    target[:, 2:6, 2:8, 2:6] = 1
    target[:, 4:6, 2:8, 2:6] = 2
    x = target[:, None].float() + 0.1 * torch.randn(2, 1, 8, 12, 16)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(x), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def as_authors(network, efl_layers, heads):
    """Weights with the authors' names and shapes, including the counter of their batch norms."""
    state, out = network.state_dict(), {}
    for ours, theirs in authors_names(efl_layers, heads).items():
        matrix = any(part in theirs for part in ("mlp", "conv8"))
        out[theirs] = state[ours][..., None, None, None] if matrix and state[ours].ndim == 2 else state[ours]
    return out | {"mamba_encoder.stages.0.2.conv51.norm1.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize(
    ("variant", "settings"),
    [("EM-Net", {}), ("A", {"patch_size": (8, 12, 16)}), ("B", {}), ("C", {}), ("EM-Net", {"efl_layout": "spatial"})],
)
@pytest.mark.parametrize("heads", [1, 2])
def test_weights_of_every_variant_are_recognised(variant, settings, heads, assert_close):
    layout = settings.get("efl_layout", "authors")
    patch = settings.get("patch_size", (8, 16, 16))
    small = SMALL | {"input_channels": 2, "patch_size": patch}
    network = EMNet(**small, variant=variant, efl_layout=layout, deep_supervision=heads > 1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    state = as_authors(network, VARIANTS[variant].efl_layers(2), heads)
    imported = from_authors("em_net", state, **settings)
    x = torch.randn(1, 2, *patch)
    ours, theirs = network.eval()(x), imported(x)
    for a, b in zip(*((ours, theirs) if heads > 1 else ([ours], [theirs])), strict=True):
        assert_close(a, b, 1e-6)


def test_variant_a_of_a_patch_that_is_no_cube_needs_its_size():
    state = as_authors(EMNet(**SMALL, variant="A"), (0, 0), 1)
    message = r"192 tokens in the first stage do not form a cube: `patch_size` must be given"
    with pytest.raises(ValueError, match=message):
        from_authors("em_net", state)
    with pytest.raises(ValueError, match=r"encoder\.stages\.0\.0\.pos \(1, 192, 6\) instead of \(1, 384, 6\)"):
        from_authors("em_net", state, patch_size=(8, 12, 32))
    cube = as_authors(EMNet(**(SMALL | {"patch_size": 8}), variant="A"), (0, 0), 1)
    assert from_authors("em_net", cube).patch_size == (8, 8, 8)


@pytest.mark.parametrize("variant", ["EM-Net", "B", "C"])
def test_sizes_that_the_authors_frequency_layers_do_not_take_are_refused(variant):
    state = as_authors(EMNet(**SMALL, variant=variant, efl_layout="authors"), VARIANTS[variant].efl_layers(2), 1)
    message = r"`patch_size`=\(8, 12, 16\): the authors' frequency layers take only equal sizes along the last two axes"
    for settings in ({}, {"patch_size": (8, 12, 16)}):
        with pytest.raises(ValueError, match=message):
            from_authors("em_net", state, **settings)


def test_missing_extra_and_misshapen_tensors_are_listed(golden):
    state = dict(golden("em_net").state_dict)
    state["stray.weight"] = state.pop("mamba_encoder.stages.3.1.ffp_module.complex_weight")
    with pytest.raises(ValueError, match=r"1 missing: .*stages\.3\.1\.ffp_module\.complex_weight; 1 extra: stray"):
        from_authors("em_net", state)
    state = dict(golden("em_net").state_dict)
    state["out2.conv.conv.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"wrong shape: decoder\.seg_layers\.1\.bias \(7,\) instead of \(3,\)"):
        from_authors("em_net", state)
    with pytest.raises(ValueError, match=r"missing: decoder1\.decoder_block\.0\.conv1\.conv\.weight"):
        from_authors("em_net", {})


def test_settings_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"em_net has no setting heads; its settings: patch_size, efl_layout"):
        from_authors("em_net", {}, heads=4)


def test_import_weights_takes_the_settings(tmp_path, capsys):
    network = EMNet(**SMALL, variant="A")
    torch.save(as_authors(network, (0, 0), 1), tmp_path / "authors.pth")
    command = ["import-weights", "em_net", str(tmp_path / "authors.pth"), str(tmp_path / "ours.pth")]
    assert main([*command, "--patch-size", "8", "12", "16", "--efl-layout", "spatial"]) == 0
    assert "EMNet" in capsys.readouterr().out
    network.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True)["network_weights"])
    assert main([*command, "--heads", "2"]) == 2
    assert "em_net has no setting heads" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("efl_layout", ["spatial", "authors"])
def test_cuda_equals_cpu_and_low_precision_trains(dtype, efl_layout, monkeypatch, assert_close):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = EMNet(**SMALL, efl_layout=efl_layout).eval()
    x = torch.randn(2, 1, 8, 12, 16)
    expected = network(x)
    network.cuda()
    assert_close(network(x.cuda()).cpu(), expected, 1e-3)
    network.train()
    with torch.autocast("cuda", dtype=dtype):
        out = network(x.cuda())
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
