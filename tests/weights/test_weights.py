import pickle

import pytest
import torch

from nnunet_ext.cli.main import main
from nnunet_ext.networks import LSTMSA, SALSTM, SASAN, EMNet, UMamba
from nnunet_ext.weights import from_authors, read_state_dict
from nnunet_ext.weights.suggest_trainer import suggest_trainer
from tests.helpers.unpickling import Calls


def test_missing_and_extra_keys_are_listed(golden):
    state = dict(golden("sasan").state_dict)
    state["stray.weight"] = state.pop("fine2.rate")
    with pytest.raises(ValueError, match=r"1 missing: fine2\.rate; 1 extra: stray\.weight"):
        from_authors("sasan", state)


def test_an_empty_state_dict_lists_what_is_missing():
    with pytest.raises(ValueError, match=r"missing: asem\.axial_attention\.axial_attentions\.0\.fn\.to_kv\.weight"):
        from_authors("sasan", {})


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"unknown network 'sassan'; known: .*sasan"):
        from_authors("sassan", {})


def test_tensors_of_the_wrong_shape_are_listed(golden):
    state = dict(golden("sasan").state_dict)
    state["final_conv.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"wrong shape: decoder\.seg_layers\.0\.bias \(7,\) instead of \(3,\)"):
        from_authors("sasan", state)


def test_odd_channels_cannot_be_imported(golden):
    state = dict(golden("sasan").state_dict)
    state["fine1.mask"] = state["fine1.mask"][:, :3]
    with pytest.raises(ValueError, match="a mask with 3 channels cannot be imported"):
        from_authors("sasan", state)


@pytest.mark.parametrize(("axis", "level"), [(2, 0), (3, 4)])
def test_sasan_at_odd_level_sizes_cannot_be_imported_exactly(golden, axis, level):
    """As from a patch of 48: the lowest level has 3 voxels a side. The authors' shift is not undone there."""
    state = dict(golden("sasan").state_dict)
    mask = state[f"fine{level + 1}.mask"]
    state[f"fine{level + 1}.mask"] = torch.cat((mask, mask.narrow(axis, 0, 1)), axis)
    sides = list(mask.shape[2:])
    sides[axis - 2] += 1
    size = " x ".join(map(str, sides))
    with pytest.raises(ValueError, match=f"level {level} has the odd size {size}: .*cannot be imported exactly"):
        from_authors("sasan", state)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": s}])
def test_import_weights_writes_a_file_for_nnunet(golden, tmp_path, wrap, capsys, assert_close):
    file = golden("sasan")
    torch.save(wrap({f"module.{k}": v for k, v in file.state_dict.items()}), tmp_path / "authors.pth")
    assert main(["import-weights", "sasan", str(tmp_path / "authors.pth"), str(tmp_path / "ours.pth")]) == 0
    assert "SASAN" in capsys.readouterr().out
    network = from_authors("sasan", file.state_dict)
    network.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True)["network_weights"])
    assert_close(network(file["x"]), file["y"], 1e-4)
    assert [p.name for p in tmp_path.glob("*.partial")] == []


def test_import_weights_says_what_is_wrong(tmp_path, capsys):
    assert main(["import-weights", "sasan", str(tmp_path / "none.pth"), "out"]) == 2
    assert "no such file" in capsys.readouterr().err
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert main(["import-weights", "sasan", str(tmp_path / "other.pth"), "out"]) == 2
    assert "missing" in capsys.readouterr().err
    assert main(["import-weights", "unet", str(tmp_path / "other.pth"), "out"]) == 2
    assert "known: " in capsys.readouterr().err


def test_files_with_code_are_rejected(tmp_path, capsys):
    torch.save({"state_dict": Calls(print, "code ran")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="Python objects besides tensors"):
        read_state_dict(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out
    (tmp_path / "garbage.pth").write_bytes(pickle.dumps([1, 2])[:5])
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_state_dict(tmp_path / "garbage.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state_dict(tmp_path / "empty.pth")


@pytest.mark.parametrize(
    ("network", "settings", "expected"),
    [
        (EMNet, {"efl_layout": "authors"}, "train with -tr EMNetAuthorsTrainer"),
        (EMNet, {}, "train with -tr EMNetTrainer"),
        (EMNet, {"variant": "A", "efl_layout": "authors"}, "train with -tr EMNetATrainer"),
        (EMNet, {"variant": "B", "efl_layout": "authors"}, "class MyTrainer(EMNetTrainer): network_settings = {'varia"),
        (SASAN, {}, "train with -tr SASANTrainer"),
        (SASAN, {"heads": 2}, "class MyTrainer(SASANTrainer): network_settings = {'heads': 2}"),
        (
            SALSTM,
            {"attention_size": 7744},
            "class MyTrainer(SALSTMMTUNetTrainer): network_settings = {'attention_size': 7",
        ),
        (LSTMSA, {}, "train with -tr LSTMSAMTUNetTrainer"),
        (UMamba, {}, "train with -tr UMambaEncTrainer"),
        (UMamba, {"variant": "Bot"}, "train with -tr UMambaBotTrainer"),
    ],
)
def test_a_trainer_is_suggested(network, settings, expected):
    """Weights of equal shapes also load into another layout or scale, but compute something else."""
    topology = {"n_stages": 3, "features_per_stage": (4, 6, 8), "kernel_sizes": 3, "strides": 2}
    made = network(1, 3, patch_size=(16, 16, 16), conv_op=torch.nn.Conv3d, **topology, **settings)
    assert expected in suggest_trainer(made)
