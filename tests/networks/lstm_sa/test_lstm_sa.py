import pytest
import torch
from torch import nn

from benchmarks.plain.lstm_sa import plain_slice, plain_volume
from nnunet_ext.networks import LSTMSA, SALSTM
from nnunet_ext.weights import from_authors

SMALL = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (5, 12, 16),
    "n_stages": 3,
    "features_per_stage": (4, 6, 8),
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": 2,
}
FLAT = SMALL | {"patch_size": (12, 16), "conv_op": nn.Conv2d}

both = pytest.mark.parametrize("network_class", [SALSTM, LSTMSA])


def randomised(network):
    """Weights for which states, attention and heads all have an effect."""
    for p in network.parameters():
        nn.init.normal_(p, std=0.4)
    return network.double()


def assert_same(outputs, leaves, assert_close, tolerance=1e-10):
    """Values, and gradients that are more than rounding (a bias before an instance norm has none)."""
    fast, plain = outputs
    assert_close(fast, plain, tolerance)
    weight = torch.randn_like(plain)
    gradients = (torch.autograd.grad((y * weight).sum(), leaves) for y in outputs)
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, 100 * tolerance)


def learnt(network):
    return [p for k, p in network.named_parameters() if not k.startswith("backbone") or not k.endswith("conv.bias")]


@pytest.mark.parametrize("name", ["salstm", "lstmsa"])
def test_agrees_with_the_authors_in_values_and_gradient(name, golden, assert_close):
    file = golden(f"lstm_sa_{name}")
    settings = {"backbone": nn.Conv2d(1, 8, 3, padding=1), "attention_size": file.meta["attention_size"]}
    network = from_authors(name, file.state_dict, **settings).double()
    x = file["x"].double().requires_grad_()
    y = network.forward_slices(*x)
    assert_close(y, file["y"].double(), 1e-6)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    assert_close(x.grad, file["grad_x"].double(), 1e-6)


@pytest.mark.parametrize(("network_class", "expected"), [(SALSTM, 80_718_392), (LSTMSA, 80_743_352)])
def test_parameter_counts_of_the_paper(network_class, expected):
    with torch.device("meta"):
        network = network_class(1, 4, (224, 224), backbone="mt_unet")
    assert sum(p.numel() for p in network.parameters()) == expected


@both
def test_logits_vary_from_the_start(network_class):
    """With PyTorch's default weights they vary by 0.01 (LSTMSA: 0.001), and Adam needs epochs to get started."""
    network = network_class(**(SMALL | {"features_per_stage": (32, 64, 128), "patch_size": (4, 32, 40)}))
    with torch.no_grad():
        logits = network(torch.randn(2, 1, 4, 32, 40))
    assert 0.1 < logits.std((2, 3, 4)).mean() < 1


def test_lstmsa_begins_near_salstm(assert_close):
    """Exactly there without the projections' weights: their biases are 1."""
    gated, plain = LSTMSA(**SMALL), SALSTM(**SMALL)
    plain.load_state_dict(gated.state_dict(), strict=False)
    for attention in gated.decoder.attentions:
        for projection in (attention.query, attention.key, attention.value):
            nn.init.zeros_(projection.weight)
    x = torch.randn(1, 1, 5, 12, 16)
    assert_close(gated(x), plain(x), 1e-5)


@both
@pytest.mark.parametrize("slices", [1, 2, 3, 5])
def test_a_volume_at_once_is_slice_by_slice(network_class, slices, assert_close):
    network = randomised(network_class(**(SMALL | {"patch_size": (slices, 12, 16)})))
    x = torch.randn(2, 1, slices, 12, 16, dtype=torch.float64, requires_grad=True)
    assert_same([network(x), plain_volume(network, x)], [x, *learnt(network)], assert_close)


@both
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 9])
def test_every_chunk_size_is_exact(network_class, chunk, assert_close):
    network = randomised(network_class(**SMALL, checkpoint_slices=chunk, deep_supervision=True))
    whole = network_class(**SMALL, checkpoint_slices=0, deep_supervision=True).double()
    whole.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 5, 12, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for form in (network, whole):
        outputs = form(x)
        loss = sum((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() for y in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [x, *learnt(form)])])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-8)


@both
def test_in_2d_a_slice_is_its_own_neighbour(network_class, assert_close):
    network = randomised(network_class(**FLAT))
    x = torch.randn(3, 1, 12, 16, dtype=torch.float64, requires_grad=True)
    assert_same([network(x), plain_slice(network, x, x, x)], [x, *learnt(network)], assert_close)
    assert_close(network.forward_slices(x, x, x), network(x), 1e-12)


@both
def test_single_slices_from_their_neighbours(network_class, assert_close):
    network = randomised(network_class(**SMALL))
    x = torch.randn(3, 2, 1, 12, 16, dtype=torch.float64, requires_grad=True)
    assert_same([network.forward_slices(*x), plain_slice(network, *x)], [x, *learnt(network)], assert_close)


def test_checkpointing_keeps_less_for_the_backward_pass():
    arguments = SMALL | {"patch_size": (12, 16, 16)}
    kept = {}
    for chunk in (0, 2):
        network = LSTMSA(**arguments, checkpoint_slices=chunk)
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(1, 1, 12, 16, 16))
        kept[chunk] = sum(sizes.values())
    assert kept[2] < 0.3 * kept[0]


@pytest.mark.parametrize(("patch", "width", "chunk"), [((40, 56, 40), 32, 0), ((128, 128, 128), 32, 3)])
def test_checkpointing_is_on_where_memory_needs_it(patch, width, chunk):
    arguments = SMALL | {"patch_size": patch, "features_per_stage": (width, 8, 8)}
    with torch.device("meta"):
        assert LSTMSA(**arguments).checkpoint_slices == chunk
        assert LSTMSA(**arguments, checkpoint_slices=7).checkpoint_slices == 7
        assert LSTMSA(**(arguments | {"patch_size": patch[1:], "conv_op": nn.Conv2d})).checkpoint_slices == 0


def test_a_backbone_with_batch_norm_sees_all_slices_at_once(assert_close):
    """Its statistics are over all slices for any chunk size, and a second pass must not count them twice."""

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x))

    x = torch.randn(2, 1, 5, 8, 8)
    results = []
    for chunk in (0, 2):
        torch.manual_seed(1)
        network = SALSTM(
            1, 2, (5, 8, 8), features_per_stage=4, conv_op=nn.Conv3d, backbone=Backbone(), checkpoint_slices=chunk
        )
        y = network(x)
        y.square().mean().backward()
        results.append([y, network.backbone.norm.running_mean, *(p.grad for p in network.parameters())])
        assert network.backbone.norm.num_batches_tracked == 1
    for a, b in zip(*results, strict=True):
        if b.abs().max() > 1e-6:  # the bias before the norm has no gradient
            assert_close(a, b, 1e-4)


def test_a_list_of_maps_may_come_from_any_backbone():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 1)

        def forward(self, x):
            x = self.conv(x)
            return [x, torch.cat((x, x), 1)[..., ::2, ::2]]

    arguments = {"features_per_stage": (4, 8), "backbone": Backbone(), "deep_supervision": True}
    outputs = SALSTM(2, 3, (3, 8, 8), conv_op=nn.Conv3d, **arguments)(torch.randn(1, 2, 3, 8, 8))
    assert [tuple(o.shape) for o in outputs] == [(1, 3, 3, 8, 8), (1, 3, 3, 4, 4)]


@both
def test_the_slices_axis_is_never_pooled(network_class):
    network = network_class(**SMALL, deep_supervision=True)
    outputs = network(torch.randn(1, 1, 5, 12, 16))
    assert [tuple(o.shape[2:]) for o in outputs] == [(5, 12, 16), (5, 6, 8)]
    planned = network_class.adapt_topology(
        **{k: v for k, v in SMALL.items() if k not in ("input_channels", "num_classes")}
    )
    assert planned["strides"] == ((1, 1, 1), (1, 2, 2), (1, 2, 2))
    assert planned["kernel_sizes"] == ((1, 3, 3),) * 3
    assert network_class(1, 3, **planned).state_dict().keys() == network_class(**SMALL).state_dict().keys()


def test_mt_unet_is_a_backbone_in_2d_and_3d():
    for patch, conv_op in (((32, 64), nn.Conv2d), ((2, 32, 32), nn.Conv3d)):
        network = LSTMSA(1, 2, patch, conv_op=conv_op, backbone="mt_unet").eval()
        with torch.no_grad():
            assert network(torch.randn(1, 1, *patch)).shape == (1, 2, *patch)


def test_whole_checkpoints_have_mt_unet_under_encoder(assert_close):
    """Round trip under the authors' names, which the golden files hold for both parts."""
    from nnunet_ext.networks.lstm_sa.authors_weights import _head_names
    from nnunet_ext.networks.mt_unet.authors_weights import authors_names

    network = LSTMSA(1, 4, (32, 32), backbone="mt_unet", attention_size=7744).eval()
    state = network.state_dict()
    theirs = {name: state[ours] for ours, name in _head_names(gated=True).items()}
    for ours, names in authors_names().items():
        parts = state[f"backbone.{ours}"].chunk(len(names))
        theirs |= {f"encoder.{name}": part for name, part in zip(names, parts, strict=True)}
    imported = from_authors("lstmsa", theirs)
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert_close(imported.forward_slices(x, x, x), network(x), 1e-5)


NAMED = {
    "MONAI": ("monai.networks.nets.UNet", {"channels": (4, 8), "strides": (2,)}),
    "PyTorch": ("torch.nn.Conv2d", {"kernel_size": 3, "padding": 1}),
    "nnU-Net": (
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        {"n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1, "norm_op": nn.InstanceNorm2d},
    ),
    "ours": ("nnunet_ext.networks.SASAN", {}),
}


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("network_class", [SALSTM, LSTMSA])
def test_any_class_is_a_backbone_by_its_name(network_class, kind, assert_close):
    """Its features are C channels; the result is that with the same module as backbone."""
    backbone, arguments = NAMED[kind]
    size = {"patch_size": (5, 16, 8)}
    network = network_class(**SMALL | size, backbone=backbone, backbone_arguments=arguments)
    widths = {"features_per_stage": network.decoder.channels}
    expected = network_class(**SMALL | size | widths, backbone=network.backbone)
    expected.load_state_dict(network.state_dict())
    x = torch.randn(2, SMALL["input_channels"], *size["patch_size"])
    y = network(x)
    assert_close(y, expected(x), 1e-6)
    y.square().mean().backward()
    assert [k for k, p in network.named_parameters() if (p.grad is None) == p.requires_grad] == []


def test_parameters_that_the_features_do_not_need_are_frozen():
    """The heads of deep supervision, which a distributed training would wait for."""
    arguments = {"features": (4, 4, 4, 4, 8, 4)}
    name = "monai.networks.nets.BasicUNetPlusPlus"
    network = LSTMSA(1, 2, (32, 16), 2, 8, backbone=name, backbone_arguments=arguments)
    frozen = {k.rpartition(".")[0] for k, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {f"backbone.final_conv_0_{i}" for i in (1, 2, 3)}
    assert network.decoder.channels == 8
    assert network(torch.randn(1, 1, 32, 16)).shape == (1, 2, 32, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": "monai.networks.nets.Nothing"},
            r"`backbone`='monai.networks.nets.Nothing' cannot be imported: there is no such class",
        ),
        ({"backbone": "torch.nn.Conv2d"}, r"missing a required argument: 'kernel_size'.*define `backbone_arguments`"),
        (
            {"backbone": "torch.nn.Conv2d", "backbone_arguments": {"kernel_size": 3}},
            r"returns maps of shape \(2, 4, 10, 14\) for slices of 12 x 16: they must have the size of a slice",
        ),
        (
            {"backbone": "torch.nn.Conv2d", "backbone_arguments": {"kernel_size": 40}},
            r"does not work on slices of 12 x 16: .*; use another patch size, or other `backbone_arguments`",
        ),
        (
            {"backbone_arguments": {"kernel_size": 3}},
            r"`backbone_arguments`=.* need a `backbone` that names a class, not None",
        ),
        (
            {"backbone": "resnet"},
            r"unknown `backbone` 'resnet'; known: None .*, 'mt_unet', or a module",
        ),
        ({"patch_size": None}, r"`patch_size` must be given, except for a backbone that is a module"),
        ({"patch_size": None, "backbone": nn.Identity()}, r"`attention_size`=None must be a positive number"),
        ({"attention_size": 0}, r"`attention_size`=0 must be a positive number"),
        ({"checkpoint_slices": -1}, r"`checkpoint_slices`=-1 must be positive, or 0"),
        ({"patch_size": (5, 12, 18)}, r"`patch_size\[2\]`=18 must be divisible by 4; nearest: 16 and 20"),
        ({"patch_size": (5, 4, 4)}, r"leaves one voxel at the lowest level"),
        ({"num_classes": 0}, r"`num_classes`=0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSTMSA(**(SMALL | arguments))


def test_missing_and_extra_keys_are_listed(golden):
    file = golden("lstm_sa_salstm")
    state = dict(file.state_dict)
    state["stray"] = state.pop("lstmlayer.conv.bias")
    with pytest.raises(ValueError, match=r"SALSTM weights: keys 1 missing: lstmlayer\.conv\.bias; 1 extra: stray"):
        from_authors("salstm", state, backbone=nn.Conv2d(1, 8, 3))
    kept = {k: v for k, v in file.state_dict.items() if k != "encoder.bias"}
    with pytest.raises(ValueError, match=r"SALSTM backbone weights: keys 1 missing: bias"):
        from_authors("salstm", kept, backbone=nn.Conv2d(1, 8, 3, padding=1))
    with pytest.raises(ValueError, match=r"LSTMSA weights: keys 12 missing: lstmlayer\.forward_net\.attention\.k_m"):
        from_authors("lstmsa", file.state_dict, backbone=nn.Conv2d(1, 8, 3))
