"""Weights of every network for other plans, up to nnU-Net's own -pretrained_weights."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_ext.networks import NETWORKS, MTUNet
from nnunet_ext.networks.adapting.tied import geometry_of
from nnunet_ext.weights import adapt_weights
from tests.helpers.small_networks import MT_UNET, images_for, planned

every_network = pytest.mark.parametrize("name", sorted(NETWORKS))
PATCHES = {2: (32, 24), 3: (16, 16, 24)}
OTHERS = {2: (48, 40), 3: (16, 16, 32)}
PATCH_ADAPTS = {"em_net": "pos", "faf_net": "down", "lstmsa": "query", "sasan": "mask"}


def adapted(old, new):
    """The new network with the old one's weights, and the rows by name."""
    weights, rows = adapt_weights(old.state_dict(), new, geometry_of(old))
    new.load_state_dict(weights)
    return new, {row.name: row for row in rows}


def names(rows, fate):
    return {name for name, row in rows.items() if row.fate == fate}


def is_head(name):
    return ".seg_layers." in name


@every_network
@pytest.mark.parametrize("axes", [2, 3])
def test_same_plan_bit_for_bit(name, axes):
    old, new = planned(name, PATCHES[axes]), planned(name, PATCHES[axes])
    new, rows = adapted(old, new)
    assert names(rows, "taken") == set(old.state_dict()) == set(rows)
    assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())


@every_network
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(
    ("change", "stays"),
    [
        ({"patch_size": OTHERS, "num_classes": 5}, "all but heads"),
        ({"input_channels": 3}, "all"),
        ({"n_stages": 5, "patch_size": {2: (32, 48), 3: (32, 16, 32)}}, "some"),
    ],
    ids=lambda value: None if isinstance(value, str) else " and ".join(value),
)
def test_weights_load_on_another_plan(name, axes, change, stays, tmp_path):
    new_setting = {"patch_size": PATCHES} | change
    new_setting["patch_size"] = new_setting["patch_size"][axes]
    old, new = planned(name, PATCHES[axes]), planned(name, **new_setting)
    weights, rows = adapt_weights(old.state_dict(), new, geometry_of(old))
    rows = {row.name: row for row in rows}
    left = names(rows, "left")
    if stays == "all":
        assert not left
    elif stays == "all but heads":
        # A stage of U-Mamba whose tokens are channels on one plan alone has no weights for the other.
        heads = {key for key in new.state_dict() if is_head(key)}
        assert heads == {key for key in left if "mamba_layers" not in key}
    if "patch_size" in change and name in PATCH_ADAPTS:
        assert any(PATCH_ADAPTS[name] in key for key in names(rows, "adapted"))
    if "input_channels" in change:
        assert all(row.how == "for other input channels" for row in rows.values() if row.fate == "adapted")
        assert names(rows, "adapted")
    initial = new.state_dict()
    assert all(torch.equal(weights[key], initial[key]) for key in left)

    torch.save({"network_weights": weights}, tmp_path / "adapted.pth")
    trained = planned(name, **new_setting)
    load_pretrained_weights(trained, str(tmp_path / "adapted.pth"))
    loaded = trained.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded if not is_head(key))
    assert all(output.isfinite().all() for output in trained(images_for(trained)))


@every_network
@pytest.mark.parametrize("axes", [2, 3])
def test_copies_of_a_channel_give_the_same_result(name, axes, assert_close):
    single, double = planned(name, PATCHES[axes]).eval(), planned(name, PATCHES[axes], input_channels=2).eval()
    adapted(single, double)
    x = images_for(single)
    with torch.no_grad():
        expected, actual = single(x)[0], double(torch.cat((x, x), 1))[0]
    assert_close(actual, expected, 1e-3)


def test_stages_count_from_the_finest():
    old, new = planned("u_mamba", (32, 32), n_stages=4), planned("u_mamba", (64, 64), n_stages=5)
    new, rows = adapted(old, new)
    assert rows["encoder.stages.3.0.conv1.conv.weight"].fate == "taken"
    assert rows["encoder.stages.4.0.conv1.conv.weight"].fate == "left"
    assert rows["decoder.projections.2.weight"].fate == "taken"
    back, rows = adapted(new, planned("u_mamba", (32, 32), n_stages=4))
    assert rows["encoder.stages.4.0.conv1.conv.weight"].fate == "unused"
    for key in names(rows, "taken"):
        assert torch.equal(back.state_dict()[key], new.state_dict()[key])


@pytest.mark.parametrize(("old_stages", "new_stages"), [(3, 4), (4, 3)])
def test_nnunets_own_decoder_counts_from_the_lowest(old_stages, new_stages):
    old, new = (
        PlainConvUNet(1, n, (4, 6, 8, 8)[:n], nn.Conv2d, 3, (1, 2, 2, 2)[:n], 1, 2, 1) for n in (old_stages, new_stages)
    )
    new, rows = adapted(old, new)
    finest = "decoder.stages.{}.convs.0.conv.weight".format
    assert torch.equal(new.state_dict()[finest(new_stages - 2)], old.state_dict()[finest(old_stages - 2)])
    assert rows["decoder.transpconvs.1.weight"].fate == "taken"
    assert {rows["encoder.stages.2.0.convs.0.conv.weight"].fate, rows[finest(1)].fate} == {"taken"}


def test_a_layer_of_another_kind_is_not_taken():
    """A stage that begins with frequency layers on one plan and with Mamba on the other."""
    old, new = planned("em_net", (32, 32), n_stages=4), planned("em_net", (32, 32), n_stages=5)
    new, rows = adapted(old, new)
    assert {row.fate for key, row in rows.items() if key.startswith("encoder.stages.2.0.")} <= {"taken"}
    old, new = planned("em_net", (32, 32), n_stages=4), planned("em_net", (32, 32), n_stages=4, variant="A")
    new, rows = adapted(old, new)
    first = {row.how for key, row in rows.items() if key.startswith("encoder.stages.2.0.") and row.fate == "left"}
    assert first == {"the file has another kind of layer here"}


def test_the_authors_layout_stays_with_its_patch():
    """Its filters have no counterpart of another size, nor in the other layout, although shapes are equal there."""
    old = planned("em_net", (32, 24), efl_layout="authors")
    for new, reason in (
        (planned("em_net", (48, 40), efl_layout="authors"), "the authors' layout filters memory"),
        (planned("em_net", (32, 24)), "its layout is 'authors' in the file, 'spatial' here"),
    ):
        _, rows = adapted(old, new)
        assert reason in rows["encoder.stages.2.0.weight"].how
        assert rows["encoder.stages.2.0.norm1.weight"].fate == "taken"


def test_a_grid_that_tensors_do_not_show_is_left_or_inferred():
    old = planned("em_net", (32, 24)).state_dict()
    _, rows = adapt_weights(old, planned("em_net", (64, 48)))
    assert {row.fate for row in rows if row.name.endswith("pos")} == {"adapted"}
    _, rows = adapt_weights(old, planned("em_net", (64, 16)))
    assert {row.how for row in rows if row.name.endswith("pos")} == {"the file does not say for which patch size it is"}


def test_equal_numbers_of_tokens_on_other_grids_are_interpolated():
    old, new = planned("em_net", (32, 24)), planned("em_net", (24, 32))
    nn.init.normal_(old.encoder.stages[0][0].pos)
    _, rows = adapted(old, new)
    assert rows["encoder.stages.0.0.pos"].fate == "adapted"


def test_mt_unet_alone_and_as_a_backbone():
    old, new = MTUNet(**MT_UNET), MTUNet(**MT_UNET | {"patch_size": (64, 64)})
    nn.init.normal_(old.encoder.downsampling[3][2].pos)
    _, rows = adapted(old, new)
    assert names(rows, "adapted") == {"encoder.downsampling.3.2.pos"}
    old, new = (planned("salstm", net.patch_size, backbone=net) for net in (old, new))
    new, rows = adapted(old, new)
    assert names(rows, "adapted") == {"backbone.encoder.downsampling.3.2.pos"}
    assert f"{{'attention_size': {round(64**4 / (96 * 64))}}}" in rows["SALSTM"].how


def test_other_widths_are_left():
    old, new = planned("sasan", (32, 24)), planned("sasan", (32, 24), decoder_features=7)
    _, rows = adapted(old, new)
    assert rows["decoder.stages.0.0.conv.weight"].how == "another width"
    assert rows["encoder.stages.0.0.conv.weight"].fate == "taken"


def test_tensors_that_do_not_fit_each_other_are_left():
    old, new = planned("em_net", (32, 24)).state_dict(), planned("em_net", (48, 40))
    old |= {"encoder.stages.0.0.pos": torch.zeros(3), "encoder.stages.2.0.weight": torch.zeros(4, 2)}
    _, rows = adapt_weights(old, new, {"decoder.stages.1.0": (5, 7)})
    whys = {row.name: row.how for row in rows if row.fate == "left" and not is_head(row.name)}
    assert set(whys) == {"encoder.stages.0.0.pos", "encoder.stages.2.0.weight", "decoder.stages.1.0.pos"}
    assert set(whys.values()) == {"its tensors do not fit each other"}


def test_names_that_ddp_and_compilation_change_are_known():
    old = planned("sasan", (32, 24))
    wrapped = {f"module._orig_mod.{key}": value for key, value in old.state_dict().items()}
    _, rows = adapt_weights(wrapped, planned("sasan", (32, 24)))
    assert {row.fate for row in rows} == {"taken"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: planned("u_mamba", (32, 24)).state_dict(), "no weights of SASAN: 0 of its 82 weights are in the file"),
        (lambda: {"a": torch.zeros(1)}, "0 of its 82 weights are in the file, which has a"),
        (lambda: planned("sasan", (16, 16, 16)).state_dict(), "of a network in 3D, and this SASAN is in 2D"),
    ],
)
def test_other_networks_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        adapt_weights(weights(), planned("sasan", (32, 24)))


def test_networks_without_declarations_have_the_general_rules():
    def make(channels, kernel):
        return nn.Sequential(nn.Conv2d(channels, 4, kernel, padding="same"), nn.Conv2d(4, 2, 1))

    _, rows = adapted(make(1, 3), make(2, 5))
    assert rows["0.weight"].how == "for other input channels and to another kernel size"
    assert rows["1.weight"].fate == "taken"
