"""Encoders of timm, with random weights, in FAF-Net."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.networks.faf_net.positions import read_at
from nnunet_ext.networks.faf_net.timm_backbone import TimmBackbone
from tests.helpers.faf_net import build, support_set

QUICK = ("test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224", "test_vit")
SLOW = (
    *("tf_efficientnet_lite0", "mobilenetv3_small_050", "regnetx_002", "resnetv2_50", "mambaout_femto"),
    *("maxvit_rmlp_pico_rw_256", "swinv2_tiny_window8_256", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"),
)
every_family = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
SIZE = (37, 29)


def of_timm(name, case="2d", **settings):
    return build(case, support=False, encoder=f"timm:{name}", **settings)


def episode_step(network, size=SIZE):
    """One step of SGD on an episode; returns its loss."""
    images, masks = support_set(shots=4, size=size)
    optimiser = torch.optim.SGD(network.parameters(), 1e-2)
    episode = network.forward_episode(images[None, :2], masks[None, :2], images[None, 2:], masks[None, 2:])
    loss = episode.query_loss + episode.alignment_loss + episode.prototype_loss
    loss.backward()
    optimiser.step()
    return loss.detach()


@every_family
def test_every_family_trains_and_predicts_at_odd_sizes(name):
    network = of_timm(name)
    assert network.encoder.describe(torch.zeros(1, 1, *SIZE)).shape[-2:] == network.encoder.grid(SIZE) == (10, 8)
    assert episode_step(network).isfinite()
    silent = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    network.set_support(*support_set())
    network.eval()
    with torch.no_grad():
        for size in (SIZE, (64, 48)):
            assert network(torch.randn(2, 1, *size)).shape == (2, 3, *size)


@every_family
def test_the_state_dict_and_the_name_are_all_of_a_network(name):
    network, other = (of_timm(name, encoder_frozen=True) for _ in range(2))
    network.set_support(*support_set())
    other.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, *SIZE)
    with torch.no_grad():
        assert torch.equal(other.eval()(x), network.eval()(x))


@every_family
def test_a_frozen_encoder_stays_as_it_is(name):
    network = of_timm(name, encoder_frozen=True, input_channels=1).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    episode_step(network)
    learnt = {k for k, p in network.named_parameters() if p.grad is not None}
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(k.startswith("encoder.backbone") for k in learnt | changed)
    assert {"encoder.reduce.weight", "encoder.threshold.0.weight", "decoder.icm.fc_q.weight"} <= learnt & changed
    assert not any(module.training for module in network.encoder.backbone.modules())


def test_a_frozen_encoder_reads_several_modalities_through_their_mean():
    network = of_timm("test_resnet", encoder_frozen=True, input_channels=2)
    assert not network.encoder.to_rgb.weight.requires_grad
    x = torch.randn(1, 2, *SIZE)
    expected = network.encoder.backbone(x.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    torch.testing.assert_close(network.encoder.describe(x), expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("frozen", [False, True])
def test_volumes_are_read_slice_by_slice(name, frozen):
    network = of_timm(name, "3d", encoder_frozen=frozen, slices_per_chunk=3)
    network.set_support(*support_set())
    x = torch.randn(1, 1, 5, *SIZE)
    y = network.eval()(x)
    assert y.shape == (1, 3, 5, *SIZE)
    y.sum().backward()
    flat = of_timm(name, "2d", encoder_frozen=frozen, patch_size=(32, 24))
    flat.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(flat.eval()(x[0].transpose(0, 1)), y[0].transpose(0, 1), rtol=1e-4, atol=1e-4)


def test_chunks_of_a_frozen_encoder_give_the_same_gradients():
    images, masks = support_set(shots=4)
    gradients = []
    whole = of_timm("test_resnet", encoder_frozen=True)
    for size in (1, 8):
        network = of_timm("test_resnet", encoder_frozen=True, slices_per_chunk=size)
        network.load_state_dict(whole.state_dict())
        episode = network.forward_episode(images[None, :2], masks[None, :2], images[None, 2:], masks[None, 2:])
        (episode.query_loss + episode.alignment_loss).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_maps_are_read_where_they_lie():
    """Against linear interpolation by NumPy's definition, one point at a time, and against PyTorch's."""
    maps = torch.randn(2, 3, 5, 7, dtype=torch.double)
    size, firsts, steps = (22, 50), (1.5, -3.0), (4.0, 8.0)
    read = read_at(maps, size, firsts, steps)
    assert read.shape == (2, 3, 6, 13)
    for i, j in ((0, 0), (2, 5), (5, 12)):
        u, v = (
            min(max((k * (n - 1) / (-(-n // 4) - 1) - first) / step, 0), count - 1)
            for k, n, first, step, count in zip((i, j), size, firsts, steps, (5, 7), strict=True)
        )
        a, b = min(int(u), 3), min(int(v), 5)
        (p, q), (r, s) = maps[..., a : a + 2, b : b + 2].permute(2, 3, 0, 1)
        u, v = u - a, v - b
        expected = (1 - u) * ((1 - v) * p + v * q) + u * ((1 - v) * r + v * s)
        torch.testing.assert_close(read[..., i, j], expected)
    aligned = F.interpolate(maps, (9, 13), mode="bilinear", align_corners=True)
    torch.testing.assert_close(read_at(maps, (33, 49), (0, 0), (8, 8)), aligned)


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("centre", [(40, 64), (72, 24)])
def test_what_is_at_a_pixel_is_at_its_position_of_the_grid(name, centre):
    """The centre of mass of what a small bright square changes; it lies at the centre or at the edge of patches."""
    torch.manual_seed(3)
    backbone = TimmBackbone(name).eval()
    size = (109, 93)
    with_square = torch.zeros(1, 3, *size)
    with_square[..., centre[0] - 2 : centre[0] + 3, centre[1] - 2 : centre[1] + 3] = 3
    with torch.no_grad():
        change = (backbone(with_square) - backbone(torch.zeros_like(with_square))).square().sum((0, 1))
    change = change * (change > change.max() / 10)
    for axis, (pixel, n) in enumerate(zip(centre, size, strict=True)):
        along = change.sum(1 - axis)
        points = torch.arange(len(along)) * (n - 1) / (len(along) - 1)
        assert abs((along * points).sum() / along.sum() - pixel) < 2.5


def test_dilation_computes_the_same_at_more_positions():
    backbone = TimmBackbone("resnet18").eval()
    plain = timm.create_model("resnet18").eval()
    plain.load_state_dict(plain.state_dict() | backbone.model.state_dict())
    x = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        dense = backbone._levels(x)
        sparse = plain.forward_intermediates(x, indices=[1, 2, 3], intermediates_only=True)
    assert [level.shape[-1] for level in dense] == [17, 9, 9]
    torch.testing.assert_close(dense[1], sparse[1])
    torch.testing.assert_close(dense[2][..., ::2, ::2], sparse[2], rtol=1e-4, atol=1e-4)


def test_the_description_of_a_window_is_a_part_of_the_images():
    backbone = TimmBackbone("test_resnet").eval()
    x = torch.randn(1, 3, 61, 49)
    with torch.no_grad():
        whole, maps = backbone(x), backbone.maps(x)
    torch.testing.assert_close(backbone.on_grid(maps, (61, 49)), whole)
    window = backbone.on_grid(maps, (61, 49), (8, 12), (33, 25))
    torch.testing.assert_close(window, whole[..., 2:11, 3:10])


@pytest.mark.parametrize("name", ["test_resnet", "resnet18"])
def test_images_arrive_as_the_network_saw_them_in_its_pretraining(name):
    """A photograph, standardised with ImageNet's statistics as nnU-Net's are with the dataset's."""
    backbone = TimmBackbone(name).eval()
    photograph = torch.rand(1, 3, 33, 33)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs = [torch.tensor(backbone.model.pretrained_cfg[k])[:, None, None] for k in ("mean", "std")]
    with torch.no_grad():
        given = backbone.maps((photograph - mean) / deviation)
        expected = backbone._levels((photograph - theirs[0]) / theirs[1])
    for maps, level in zip(given, expected, strict=True):
        standardised = F.layer_norm(level.movedim(1, -1), level.shape[1:2], eps=1e-6).movedim(-1, 1)
        torch.testing.assert_close(maps, standardised, rtol=1e-3, atol=1e-4)


def test_networks_of_a_single_size_get_resized_images():
    backbone = TimmBackbone("levit_128s")
    assert backbone.sizes.resized == (224, 224)
    assert backbone(torch.randn(1, 3, 50, 61)).shape[-2:] == (13, 16)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("timm:resnet51", "unknown `encoder` 'timm:resnet51'; timm .* has similar names: .*resnet50"),
        ("timm:" + "?" * 30, "unknown `encoder` .*list_models"),
        ("timm:resnet50.in99k", "unknown `encoder` 'timm:resnet50.in99k': Invalid pretrained tag"),
        ("timm:vgg11", "timm's VGG does not offer its feature maps"),
        ("resnet152", "unknown `encoder` 'resnet152'; known: resnet101, .*, plan, and timm:NAME"),
    ],
)
def test_unusable_encoders_are_refused(encoder, message):
    with pytest.raises(ValueError, match=message):
        build(encoder=encoder, support=False)


def test_the_plans_encoder_cannot_be_frozen():
    with pytest.raises(ValueError, match="`encoder_frozen`=True needs a pretrained encoder"):
        build(encoder_frozen=True, support=False)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match=r"slices of \(4, 40\) voxels are too small .* at least \(5, 5\)"):
        of_timm("test_resnet").encoder.grid((4, 40))


def test_batch_norms_of_a_pretrained_encoder_that_is_trained_keep_their_statistics():
    network = of_timm("test_resnet")
    network.load_encoder_weights(timm.create_model("test_resnet").state_dict())
    network.train()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    episode_step(network)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())
    norms = [m for m in network.encoder.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(not norm.training and norm.weight.grad is not None for norm in norms)
