"""`nnunet_ext adapt-weights`, on checkpoints that version 0.1.0 wrote."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunet_ext.cli.main import main
from nnunet_ext.networks.adapting.tied import geometry_of
from nnunet_ext.nnunet.plan_settings import read_plan
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.weights import write_pretrained
from nnunet_ext.weights.adapting.source import read_source
from tests.helpers.paths import TESTS
from tests.helpers.unpickling import Calls

MODELS = TESTS / "data" / "version_0_1_0"
TRAINERS = ("SASANTrainer", "EMNetTrainer", "LSTMSATrainer", "FAFNetTrainer")


def checkpoint(trainer):
    return MODELS / trainer / "fold_all" / "checkpoint_final.pth"


@pytest.fixture
def plan(tmp_path):
    """Writes a trainer's plan, changed to another patch, channels and labels, and returns its file."""

    def write(trainer, patch=None, channels=1, labels=3, zoom=1.0):
        plans, dataset = (json.loads((MODELS / trainer / f"{name}.json").read_text()) for name in ("plans", "dataset"))
        configuration = plans["configurations"]["tiny"]
        if patch is not None:
            configuration["patch_size"] = patch
            if "patch_size" in configuration["architecture"]["arch_kwargs"]:
                configuration["architecture"]["arch_kwargs"]["patch_size"] = patch
        configuration["spacing"] = [zoom * mm for mm in configuration["spacing"]]
        dataset["channel_names"] = {str(i): "MRI" for i in range(channels)}
        dataset["labels"] = {"background": 0} | {f"label {i}": i for i in range(1, labels)}
        (tmp_path / "plans.json").write_text(json.dumps(plans))
        (tmp_path / "dataset.json").write_text(json.dumps(dataset))
        return tmp_path / "plans.json"

    return write


def run(source, plans, *options):
    output = plans.parent / "adapted.pth"
    return main(["adapt-weights", str(source), str(output), "--plans", str(plans), "-c", "tiny", *options]), output


def network_for(trainer, plans):
    return read_plan(plans, "tiny").network(find_trainer(trainer), deep_supervision=True)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_checkpoint_for_another_plan(trainer, plan, capsys):
    plans = plan(trainer, patch=[24, 16, 32], channels=2, labels=4)
    code, output = run(checkpoint(trainer), plans)
    assert code == 0
    printed = capsys.readouterr().out
    name = json.loads(plans.read_text())["plans_name"]
    assert f"train with -tr {trainer} -p {name} -pretrained_weights {output}" in printed
    assert "for other input channels" in printed
    assert "a head for other classes or features" in printed
    network = network_for(trainer, plans)
    load_pretrained_weights(network, str(output))
    written = torch.load(output, weights_only=True)["network_weights"]
    loaded = network.state_dict()
    assert all(torch.equal(written[key], loaded[key]) for key in loaded if ".seg_layers." not in key)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_checkpoint_for_its_own_plan(trainer, plan, capsys):
    code, output = run(checkpoint(trainer), plan(trainer), "--json")
    assert code == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["trainer"], written["configuration"]) == (trainer, "tiny")
    counts = written["counts"]
    given = read_source(checkpoint(trainer)).weights
    assert counts == {"taken": len(given), "adapted": 0, "left": 0, "unused": 0, "setting": 0}
    assert [row["fate"] for row in written["weights"]] == ["taken"] * len(given)
    result = torch.load(output, weights_only=True)["network_weights"]
    assert all(torch.equal(result[key], value) for key, value in given.items())


@pytest.mark.parametrize("trainer", ["SASANTrainer", "EMNetTrainer"])
def test_filters_follow_the_spacing(trainer, plan, capsys):
    """The same patch in voxels of another size: other frequencies in cycles per patch."""
    code, output = run(checkpoint(trainer), plan(trainer, zoom=2.0), "--json")
    assert code == 0
    rows = json.loads(capsys.readouterr().out)["weights"]
    how = {row["how"] for row in rows if row["fate"] != "taken"}
    assert how == {"resampled in frequency"}
    old, new = read_source(checkpoint(trainer)).weights, read_source(output).weights
    if trainer == "SASANTrainer":
        masks = (weights["encoder.fine.0.mask"] for weights in (new, old))
        torch.testing.assert_close(*(mask[0, :, k, 0, 0] for mask, k in zip(masks, (2, 1), strict=True)))


def test_an_adapted_file_says_for_what_it_is(plan, tmp_path, capsys):
    """So that the next step, and one from import-weights, infers nothing; it does not name a trainer."""
    plans = plan("EMNetTrainer", patch=[32, 16, 48])
    network = network_for("EMNetTrainer", plans)
    write_pretrained(network, tmp_path / "imported.pth")
    assert read_source(tmp_path / "imported.pth").geometry == geometry_of(network)
    plans = plan("EMNetTrainer")
    code, _ = run(tmp_path / "imported.pth", plans)
    assert code == 2
    assert "does not say which trainer its weights are for: name it with -tr" in capsys.readouterr().err
    code, _ = run(tmp_path / "imported.pth", plans, "-tr", "EMNetSGDTrainer")
    assert code == 0
    printed = capsys.readouterr().out
    assert "interpolated between tokens" in printed
    assert "-tr EMNetSGDTrainer" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-tr", "EMNetTrainer"), "checkpoint_final.pth: these are no weights of EMNet"),
        (("-tr", "SASANTrainr"), "unknown trainer 'SASANTrainr'; did you mean SASANTrainer?"),
        (("-c", "3d_lowres"), "unknown configuration '3d_lowres'"),
    ],
)
def test_what_does_not_fit_is_named(options, message, plan, capsys):
    code, output = run(checkpoint("SASANTrainer"), plan("SASANTrainer"), *options)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_files_that_cannot_be(plan, tmp_path, capsys):
    plans = plan("SASANTrainer")
    assert run(tmp_path / "none.pth", plans)[0] == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "dataset.json").unlink()
    assert run(checkpoint("SASANTrainer"), plans)[0] == 2
    assert "dataset.json" in capsys.readouterr().err
    plans.write_text("{")
    assert run(checkpoint("SASANTrainer"), plans)[0] == 2
    assert f"{plans} is cut off or not valid JSON" in capsys.readouterr().err
    plans = plan("SASANTrainer")
    copy = shutil.copy(checkpoint("SASANTrainer"), tmp_path / "adapted.pth")
    assert run(copy, plans)[0] == 2
    assert "is the input: give another file" in capsys.readouterr().err


def test_a_trainer_that_is_not_installed(plan, tmp_path, capsys):
    """The network's geometry is then that of the trainer that is named instead."""
    content = torch.load(checkpoint("EMNetTrainer"), weights_only=False) | {"trainer_name": "TheirTrainer"}
    torch.save(content, tmp_path / "theirs.pth")
    plans = plan("EMNetTrainer")
    assert run(tmp_path / "theirs.pth", plans)[0] == 2
    error = capsys.readouterr().err
    assert "unknown trainer 'TheirTrainer'" in error
    assert "name another trainer of the same network with -tr" in error
    assert run(tmp_path / "theirs.pth", plans, "-tr", "EMNetTrainer")[0] == 0
    assert read_source(tmp_path / "theirs.pth", "EMNetTrainer").geometry == geometry_of(
        network_for("EMNetTrainer", plans)
    )


@pytest.mark.parametrize("where", ["logging", "init_args", "network_weights"])
def test_code_in_a_checkpoint_is_refused(where, plan, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(checkpoint("SASANTrainer"), weights_only=False)
    content[where] = {"code": Calls(exec, "open('executed', 'w')")}
    torch.save(content, tmp_path / "evil.pth")
    code, output = run(tmp_path / "evil.pth", plan("SASANTrainer"))
    assert code == 2
    assert "holds Python objects besides tensors" in capsys.readouterr().err
    assert not output.exists()
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "architecture",
    [
        {"network_class_name": "builtins.exec", "arch_kwargs": {"source": "open('executed', 'w')"}},
        {"network_class_name": "executing.Network"},
        {"arch_kwargs": {"conv_op": "executing.Conv3d"}},
        {"arch_kwargs": {"conv_op": "torch.nn.modules.module.torch.os.abort"}},
        {"arch_kwargs": {"heads": "executing.Heads"}, "_kw_requires_import": ["conv_op", "heads"]},
    ],
)
def test_a_checkpoints_plan_imports_and_calls_nothing(architecture, plan, tmp_path, monkeypatch):
    """Building the network that a plan describes would; the weights themselves are good."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "executing.py").write_text("open('executed', 'w')\n")
    content = torch.load(checkpoint("SASANTrainer"), weights_only=False)
    planned = content["init_args"]["plans"]["configurations"]["tiny"]["architecture"]
    planned["arch_kwargs"] |= architecture.get("arch_kwargs", {})
    planned |= {key: value for key, value in architecture.items() if key != "arch_kwargs"}
    torch.save(content, tmp_path / "evil.pth")
    read_source(tmp_path / "evil.pth")
    code, _ = run(tmp_path / "evil.pth", plan("SASANTrainer"))
    assert code == 0
    assert not Path("executed").exists()


@pytest.mark.slow
@pytest.mark.long
def test_nnunet_trains_from_adapted_weights(nnunet):
    plans = nnunet.plans
    other = plans["configurations"]["3d_fullres_tiny"] | {"patch_size": [24, 16, 32]}
    nnunet.write_plans(plans | {"configurations": plans["configurations"] | {"other": other}})
    budget = {f"NNUNET_EXT_{name}": "1" for name in ("EPOCHS", "ITERATIONS", "VAL_ITERATIONS")}

    def train(configuration, *options):
        arguments = ("4", configuration, "0", "-tr", "SASANTrainer", "-device", "cpu")
        return nnunet.run("nnUNetv2_train", *arguments, *options, **budget)

    train("3d_fullres_tiny")
    trained = nnunet.model("SASANTrainer", "3d_fullres_tiny") / "checkpoint_final.pth"
    refused = nnunet.attempt(
        "nnUNetv2_train",
        "4",
        "other",
        "0",
        "-tr",
        "SASANTrainer",
        "-device",
        "cpu",
        "-pretrained_weights",
        str(trained),
        **budget,
    )
    assert refused.returncode != 0
    assert "The shape of the parameters of key" in refused.stdout
    adapted = nnunet.root / "adapted.pth"
    printed = nnunet.run(
        "nnunet_ext", "adapt-weights", str(trained), str(adapted), "-p", str(nnunet.plans_file), "-c", "other"
    )
    assert "resampled in frequency" in printed
    assert "Loading pretrained weights" in train("other", "-pretrained_weights", str(adapted))
    assert (nnunet.model("SASANTrainer", "other") / "checkpoint_final.pth").is_file()
