"""FAF-Net with imported weights."""

import pytest
import torch
from torch import nn

from nnunet_ext.cli.main import main
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.authors_weights import faf_net_from_authors
from nnunet_ext.networks.faf_net.head import FAFHead
from nnunet_ext.weights import from_authors
from tests.helpers.faf_net import SMALL, build, support_set


def test_pretrained_weights_are_asked_of_the_encoder(monkeypatch):
    import torchvision

    given = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: given)
    network = build("resnet18", support=False, weights="imagenet")
    assert torch.equal(network.encoder.backbone.conv1.weight, given["conv1.weight"])
    assert not network.train().encoder.backbone.bn1.training


def as_authors(network):
    """A whole checkpoint with names like the authors', including the parts on which no output depends."""
    state = {}
    for key, value in network.encoder.backbone.state_dict().items():
        state[f"encoder.backbone.{key}"] = value
    state |= {
        "encoder.reduce1.weight": network.encoder.reduce.weight,
        "encoder.reduce2.weight": torch.zeros(8, 2048, 1, 1),
        "encoder.reduce1d.weight": torch.zeros(1, 1000),
        "encoder.reduce1d.bias": torch.zeros(1),
        "thre.0.weight": network.encoder.threshold[0].weight,
        "thre.2.weight": network.encoder.threshold[2].weight,
        "encoder.backbone.layer4.0.conv1.weight": torch.zeros(2, 2, 1, 1),
        "encoder.backbone.fc.weight": torch.zeros(1000, 2048),
    }
    icm = network.decoder.icm.state_dict()
    for key, value in icm.items():
        key = key.replace("aff.amplitude.down", "down1").replace("aff.phase.down", "down2")
        for ours, theirs in (("amplitude", "amp"), ("phase", "pha")):
            for i, place in ((1, 0), (2, 1), (3, 1)):
                key = key.replace(f"aff.{ours}.res{i}", f"{theirs}_res{i}.{place}")
        state[f"cross_att.{key}"] = value
    return {k: v.detach() for k, v in state.items()}


@pytest.fixture
def whole():
    arguments = SMALL | {"patch_size": (33, 33), "strides": 1, "encoder": "resnet50", "feature_channels": 8}
    return FAFNet(**arguments | {"num_classes": 2})


def test_a_whole_checkpoint_is_imported_without_its_dead_parts(whole, assert_close):
    imported = from_authors("faf_net", as_authors(whole))
    assert imported.patch_size == (33, 33)
    assert imported.encoder.backbone.name == "resnet50"
    assert not imported.training
    images, masks = support_set(1, size=(33, 33))
    for network in (whole, imported):
        network.eval().set_support(images, masks)
    assert_close(imported(images), whole(images), 1e-6)
    other = from_authors("faf_net", as_authors(whole), patch_size=(65, 40), input_channels=3, num_classes=4)
    assert other.decoder.icm.aff.phase.grid == (9, 9)
    assert other.decoder.seg_layers.prototypes.shape == (4, 8)


def test_import_weights_takes_the_settings(whole, tmp_path):
    torch.save(as_authors(whole), tmp_path / "authors.pth")
    command = ["import-weights", "faf_net", str(tmp_path / "authors.pth"), str(tmp_path / "ours.pth")]
    settings = {"--input-channels": [3], "--num-classes": [4], "--patch-size": [65, 40], "--filter-grid": [9, 9]}
    assert main([*command, *(str(word) for option, values in settings.items() for word in (option, *values))]) == 0
    written = torch.load(tmp_path / "ours.pth", weights_only=True)["network_weights"]
    assert written["decoder.seg_layers.prototypes"].shape == (4, 8)


def test_missing_extra_and_misshapen_keys_are_listed(golden, whole):
    state = dict(golden("faf_net").state_dict)
    state["stray.weight"] = state.pop("cross_att.fc_q.bias")
    with pytest.raises(ValueError, match=r"1 missing: cross_att\.fc_q\.bias; 1 extra: stray\.weight"):
        from_authors("faf_net", state)
    with pytest.raises(ValueError, match=r"missing: cross_att\.amp_res1\.0\.weight"):
        from_authors("faf_net", {})
    state = golden("faf_net").state_dict | {"cross_att.fc_o.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"wrong shape: icm\.fc_o\.bias \(7,\) instead of \(16,\)"):
        from_authors("faf_net", state)
    state = as_authors(whole)
    state["encoder.backbone.layer1.9.stray"] = state.pop("encoder.backbone.bn1.bias")
    with pytest.raises(ValueError, match=r"1 missing: bn1\.bias; 1 extra: layer1\.9\.stray"):
        from_authors("faf_net", state)
    state = as_authors(whole)
    del state["thre.2.weight"]
    with pytest.raises(
        ValueError, match=r"one of shape \(1, 8, 1, 1\), but there are: encoder\.reduce1\.weight \(8, 1024, 1, 1\)"
    ):
        from_authors("faf_net", state)


def test_filters_of_no_square_grid_need_their_grid():
    head = FAFHead(2, 8, 2, (4, 6))
    names = as_authors_head(head)
    with pytest.raises(ValueError, match=r"filters of 24 positions have no square grid: `filter_grid` must be given"):
        faf_net_from_authors(names)
    assert faf_net_from_authors(names, filter_grid=(4, 6)).icm.aff.phase.grid == (4, 6)
    with pytest.raises(ValueError, match=r"faf_net has no setting heads; its settings: patch_size, "):
        from_authors("faf_net", names, heads=2)


def as_authors_head(head):
    network = nn.Module()
    network.decoder, network.encoder = head, nn.Module()
    network.encoder.backbone, network.encoder.reduce = nn.Module(), nn.Conv2d(1, 1, 1)
    network.encoder.threshold = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    return {k: v for k, v in as_authors(network).items() if k.startswith("cross_att.")}
