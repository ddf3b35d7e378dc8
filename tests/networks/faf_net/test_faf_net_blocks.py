import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.networks.faf_net.adaptive_filter import AFF
from nnunet_ext.networks.faf_net.dilated_resnet import RESNETS, DilatedResNet
from nnunet_ext.networks.faf_net.icm import ICM, icm_reference
from nnunet_ext.networks.faf_net.prototypes import foreground_probability, masked_average, masked_average_reference
from nnunet_ext.weights import from_authors


def compare_with_gradients(assert_close, fast, plain, leaves, tolerance=1e-10):
    assert_close(fast, plain, tolerance)
    weight = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), leaves) for y in (fast, plain)), strict=True):
        assert_close(a, b, 1e-8)


def test_icm_agrees_with_the_authors(golden, assert_close):
    file = golden("faf_net")
    icm = from_authors("faf_net", file.state_dict).double().icm
    prototypes, features = file["icm_prototype_in"].double()[None], file["features"].double()[1:]
    for form in (icm(prototypes, features), icm_reference(icm, prototypes, features)):
        assert_close(form[0], file["icm_prototype_out"].double(), 1e-6)


@pytest.mark.parametrize(("grid", "size"), [((5, 6), (5, 6)), ((6, 5), (6, 5)), ((4, 5), (7, 8)), ((9, 9), (3, 2))])
def test_icm_without_keys_and_values_is_the_plain_form_with_every_gradient(grid, size, assert_close):
    icm = ICM(6, 3, grid).double()
    prototypes = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    features = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    # A constant over positions cancels in the softmax, so fc_k's bias has no gradient except rounding.
    leaves = [prototypes, features, *(p for name, p in icm.named_parameters() if name != "fc_k.bias")]
    fast, plain = icm(prototypes, features), icm_reference(icm, prototypes, features)
    compare_with_gradients(assert_close, fast, plain, leaves)


def direct_aff(aff, maps, features):
    """The page's formulas, with a bilinear resize written by its weights."""

    def matrix(source, target):
        positions = torch.arange(target, dtype=torch.float64) * ((source - 1) / max(target - 1, 1))
        return (1 - (positions[:, None] - torch.arange(source)).abs()).clamp_min(0)

    def resized(x, size):
        return matrix(x.shape[-2], size[0]) @ x @ matrix(x.shape[-1], size[1]).T

    h, w = maps.shape[-2:]
    filters = []
    for branch in (aff.amplitude, aff.phase):
        gh, gw = branch.grid
        r1 = F.conv2d(features, branch.res1.weight)
        r2 = F.conv2d(r1.relu(), branch.res2.weight, padding=1) + r1
        r3 = resized(F.conv2d(r2.relu(), branch.res3.weight).relu(), (gh, gw))
        flat = r3.flatten(2) @ branch.down.weight.T + branch.down.bias
        filters.append(resized(flat.view(*r3.shape[:2], gh, gw // 2 + 1), (h, w // 2 + 1)))
    spectrum = torch.fft.fft2(maps)[..., : w // 2 + 1]
    filtered = spectrum.abs() * filters[0] * torch.exp(1j * spectrum.angle() * filters[1])
    # The inverse, written out: complex along the first axis, with the conjugate half along the last.
    columns = torch.fft.ifft(filtered, dim=-2)
    rest = columns[..., 1 : (w + 1) // 2].flip(-1).conj()
    return torch.fft.ifft(torch.cat((columns[..., :1].real + 0j, middle(columns[..., 1:], w), rest), -1), dim=-1).real


def middle(columns, width):
    """The highest frequency of an even width is real."""
    return torch.cat((columns[..., :-1], columns[..., -1:].real + 0j), -1) if width % 2 == 0 else columns


@pytest.mark.parametrize("size", [(5, 5), (4, 6), (5, 4), (7, 9), (3, 2)])
def test_aff_is_the_pages_formula(size, assert_close):
    aff = AFF(4, 2, (5, 5)).double()
    for branch in (aff.amplitude, aff.phase):
        nn.init.normal_(branch.down.bias)
    features, maps = torch.randn(3, 4, *size, dtype=torch.float64), torch.randn(3, 2, *size, dtype=torch.float64)
    assert_close(aff(maps, *aff.filters(features)), direct_aff(aff, maps, features), 1e-10)


def test_affs_gradient_is_that_of_finite_differences():
    """Also with negative filters, where the gradient of torch.polar is wrong."""
    aff = AFF(4, 2, (4, 5)).double()
    maps, amplitude, phase = torch.randn(2, 4, 5), torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    inputs = [t.double().requires_grad_() for t in (maps, amplitude, phase)]
    assert torch.autograd.gradcheck(aff, inputs)


def test_constant_maps_have_a_finite_gradient():
    aff = AFF(4, 2, (4, 5))
    maps = torch.zeros(1, 2, 4, 5, requires_grad=True)
    aff(maps, *aff.filters(torch.randn(1, 4, 4, 5))).sum().backward()
    assert maps.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in aff.parameters())


def test_resizing_keeps_the_zero_frequency():
    """A filter that passes only the zero frequency leaves the mean, on its own grid and on another."""
    aff = AFF(4, 2, (9, 9))
    for branch, value in ((aff.amplitude, 0.0), (aff.phase, 1.0)):
        nn.init.zeros_(branch.down.weight)
        nn.init.constant_(branch.down.bias, value)
    with torch.no_grad():
        aff.amplitude.down.bias[0] = 1
    for size in ((9, 9), (5, 5)):
        maps = torch.randn(1, 2, *size)
        filtered = aff(maps, *aff.filters(torch.randn(1, 4, *size)))
        assert torch.allclose(filtered, maps.mean((-2, -1), keepdim=True).expand_as(maps), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_transforms_and_attention(dtype, assert_close):
    icm = ICM(8, 2, (4, 5))
    prototypes, features = torch.randn(1, 3, 8), torch.randn(1, 8, 4, 5)
    filters = icm.aff.filters(features)
    maps = torch.randn(1, 2, 4, 5)
    expected, read = icm.aff(maps, *filters), icm(prototypes, features)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(icm.aff(maps, *filters), expected)
        low = icm(prototypes, features.to(dtype))
    assert low.dtype == torch.float32
    assert_close(low, read, 0.02)


@pytest.mark.parametrize(("size", "full"), [((3, 4), (12, 16)), ((9, 9), (33, 33)), ((5, 6), (5, 6)), ((4, 2), (7, 5))])
def test_masked_average_is_that_of_upsampled_features(size, full, assert_close):
    features = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 3, *full, dtype=torch.float64)
    compare_with_gradients(
        assert_close, masked_average(features, masks), masked_average_reference(features, masks), [features]
    )
    binary = masks > 0.5
    assert_close(masked_average(features, binary), masked_average_reference(features, binary), 1e-10)


def test_an_empty_mask_averages_to_zero():
    assert (masked_average(torch.randn(1, 5, 3, 3), torch.zeros(1, 2, 6, 6)) == 0).all()


def test_probability_is_the_pages_formula(assert_close):
    features, prototypes = torch.randn(2, 5, 3, 4).double(), torch.randn(2, 3, 5).double()
    tau = torch.randn(2, 1, 3, 4).double()
    s = 20 * F.cosine_similarity(features[:, None], prototypes[..., None, None], dim=2)
    assert_close(foreground_probability(features, prototypes, tau), 1 - torch.sigmoid(0.5 * (-s - tau)), 1e-12)
    assert foreground_probability(features * 0, prototypes * 0, tau).isfinite().all()


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_dilation_by_hand_is_torchvisions_own(name, assert_close):
    import torchvision

    ours = DilatedResNet(name).eval()
    theirs = torchvision.models.get_model(name, replace_stride_with_dilation=[True, True, False]).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(1, 3, 37, 41)
    with torch.no_grad():
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer3(theirs.layer2(theirs.layer1(expected)))
        assert_close(ours(x), expected, 1e-5)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 256), ("resnet50", 1024), ("resnet101", 1024)])
@pytest.mark.parametrize(("size", "expected"), [(257, 65), (64, 16), (30, 8)])
def test_resnets_work_at_stride_four(name, width, size, expected):
    with torch.device("meta"):
        network = DilatedResNet(name)
        assert network.width == width
        assert network(torch.empty(1, 3, size, size)).shape == (1, width, expected, expected)
    assert {k.split(".")[0] for k in network.state_dict()} == {"conv1", "bn1", "layer1", "layer2", "layer3"}


def test_pretrained_weights_come_through_torchvision_and_freeze_the_norms(monkeypatch):
    import torchvision

    given = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: given)
    network = DilatedResNet("resnet18").train()
    assert network.bn1.training
    network.load_pretrained("imagenet")
    assert all(torch.equal(given[k], v) for k, v in network.state_dict().items())
    network.train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert network.training
    assert not any(m.training for m in norms)
    before = network.bn1.running_mean.clone()
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    assert torch.equal(network.bn1.running_mean, before)
    assert network.bn1.weight.grad is not None


def test_coco_weights_are_the_backbone_of_deeplab(monkeypatch):
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, deeplabv3_resnet50

    given = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).state_dict()
    monkeypatch.setattr(DeepLabV3_ResNet50_Weights, "get_state_dict", lambda *_, **__: given)
    network = DilatedResNet("resnet50")
    network.load_pretrained("coco")
    assert all(torch.equal(given[f"backbone.{k}"], v) for k, v in network.state_dict().items())


def test_weights_that_cannot_be_downloaded_name_the_way_out(monkeypatch):
    import torchvision

    def fail(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(RuntimeError, match=r"imagenet weights of resnet18 .*no network here.* weights=None"):
        DilatedResNet("resnet18").load_pretrained("imagenet")


def test_unknown_resnets_and_weights_list_the_known():
    with pytest.raises(ValueError, match=rf"unknown ResNet 'resnet34'; known: {', '.join(RESNETS)}"):
        DilatedResNet("resnet34")
    with pytest.raises(ValueError, match=r"unknown `weights` 'voc'; known: imagenet, coco, None"):
        DilatedResNet("resnet18").load_pretrained("voc")
    with pytest.raises(ValueError, match=r"'coco' exist for resnet101, resnet50, not for resnet18"):
        DilatedResNet("resnet18").load_pretrained("coco")


def test_frozen_norms_stay_frozen_when_ddp_synchronises_them():
    network = DilatedResNet("resnet18")
    network.frozen_norms = True
    norms = [
        m
        for m in nn.SyncBatchNorm.convert_sync_batchnorm(network).train().modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert not any(m.training for m in norms)
