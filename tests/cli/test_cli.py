import json
import os
import signal
import subprocess
import sys

import pytest

import nnunet_ext
from nnunet_ext.cli.main import main
from nnunet_ext.cli.networks import PAPER_SETTINGS
from nnunet_ext.crossval.preparation import LOCK
from nnunet_ext.demo.workspace import DATASET, Settings, Workspace
from nnunet_ext.doctor import diagnose
from nnunet_ext.nnunet.trainers import find_trainer, known_trainers, trainers_folder
from nnunet_ext.utils.locks import acquire
from nnunet_ext.utils.subprocesses import console_script

COMPLETE = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def environment(tmp_path):
    return {name: str(tmp_path) for name in COMPLETE} | {"nnUNet_extTrainer": str(trainers_folder())}


@pytest.mark.parametrize("command", ["nnunet_ext", "module"])
def test_help_imports_nothing_heavy(command):
    start = [sys.executable, "-m", "nnunet_ext"] if command == "module" else [console_script("nnunet_ext")]
    shown = subprocess.run([*start, "--help"], capture_output=True, text=True, check=True).stdout
    for name in (
        "trainers",
        "doctor",
        "networks",
        "import-weights",
        "compare",
        "demo",
        "crossval",
        "fewshot",
        "convert",
        "export",
    ):
        assert name in shown
    code = "import sys, nnunet_ext.cli.main; print([m for m in ('torch', 'numpy', 'nnunetv2') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_trainers_prints_the_folder_that_nnunet_needs(capsys):
    assert main(["trainers"]) == 0
    assert capsys.readouterr().out.strip() == str(trainers_folder())
    assert (trainers_folder() / "SASANTrainer.py").is_file()


def test_trainers_are_listed_with_what_they_train(capsys):
    assert main(["trainers", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(known_trainers())
    assert all(len(line.split()) > 3 for line in lines)
    assert main(["trainers", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["SASANTrainer"].startswith("SASAN with the paper's self-updating")
    assert main(["trainers", "--json"]) == 2
    assert "--json belongs to --list" in capsys.readouterr().err


def test_a_misspelt_trainer_is_asked_about():
    with pytest.raises(ValueError, match=r"unknown trainer 'sasantrainr'; did you mean SASANTrainer\? known: "):
        find_trainer("sasantrainr")


def test_doctor_is_content_with_a_complete_installation(environment, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "Everything needed is installed." in out
    assert nnunet_ext.__version__ in out


def test_doctor_answers_scripts_in_json(environment, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    monkeypatch.delenv("nnUNet_raw")
    assert main(["doctor", "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["passed"], content["check"]) == (False, None)
    missing = [check for check in content["installation"] if check["state"] == "missing"]
    assert [check["name"] for check in missing] == ["nnUNet_raw"]
    assert missing[0]["remedy"].startswith("export nnUNet_raw=")


@pytest.mark.parametrize("built", [True, False])
def test_doctor_says_what_the_scan_runs_on(environment, monkeypatch, built):
    from nnunet_ext.ops import native

    if built and native.native_library() is None:
        pytest.skip("the C extension was not built")
    if not built:
        for module in (native, sys.modules["nnunet_ext.ops.selective_scan"]):
            monkeypatch.setattr(module, "native_library", lambda: None)
    check = states(environment)["selective scan on cpu"]
    assert check.found.startswith("cpu (C extension, " if built else "torch (segments in plain PyTorch")
    assert check.state == ("ok" if built else "optional")
    assert ("install a C compiler" in check.remedy) != built


@pytest.mark.parametrize("name", [*COMPLETE, "nnUNet_extTrainer"])
def test_doctor_says_what_is_missing_and_what_to_do(environment, monkeypatch, capsys, name):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv(name)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert f"MISSING {name}" in out
    assert f"export {name}=" in out
    assert "1 needed thing(s) missing." in out


def states(environment, search_path=()):
    return {check.name: check for check in diagnose(environment, search_path)}


def test_doctor_notices_folders_that_do_not_exist(environment):
    found = states(environment | {"nnUNet_raw": "/nowhere/at all", "nnUNet_extTrainer": "/nowhere"})
    assert found["nnUNet_raw"].state == "missing"
    assert found["nnUNet_raw"].remedy == "mkdir -p '/nowhere/at all'"
    assert found["nnUNet_extTrainer"].state == "missing"


@pytest.mark.parametrize("name", [*COMPLETE, "nnUNet_extTrainer"])
def test_doctor_counts_an_empty_variable_as_unset(environment, name):
    assert states(environment | {name: ""})[name].state == "missing"


def test_doctor_takes_our_folder_among_others(environment):
    several = f"/other:{trainers_folder()}"
    assert states(environment | {"nnUNet_extTrainer": several})["nnUNet_extTrainer"].state == "ok"


def test_doctor_notices_another_package_of_this_name(environment, tmp_path):
    (tmp_path / "nnunet_ext").mkdir()
    (tmp_path / "nnunet_ext" / "__init__.py").touch()
    assert states(environment)["nnunet_ext"].state == "ok"
    shadowed = states(environment, [str(tmp_path)])["nnunet_ext"]
    assert shadowed.state == "missing"
    assert str(tmp_path) in shadowed.remedy


def test_the_networks_command_lists_the_registry():
    from nnunet_ext.networks import NETWORKS

    listed = {row["name"]: row for row in json.loads(PAPER_SETTINGS.read_text(encoding="utf-8"))}
    assert list(listed) == [info.name for info in NETWORKS.values()]
    for info in NETWORKS.values():
        row = listed[info.name]
        assert row["network"] == info.network.__name__
        assert row["trainers"] == list(info.trainers)
        assert row["variants"] == list(info.variants)
        assert row["patch_size"] == list(info.paper["patch_size"])
        assert (row["input_channels"], row["num_classes"]) == (info.paper["input_channels"], info.paper["num_classes"])


@pytest.mark.slow
def test_networks_at_the_papers_setting(capsys):
    from nnunet_ext.profiling.counts import network_costs

    assert main(["networks", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    traced = network_costs(None, "")
    assert printed == traced, f"write this to {PAPER_SETTINGS}:\n{json.dumps(traced, indent=2)}"
    (row,) = [r for r in printed if r["name"] == "sasan"]
    assert row["parameters"] == 60_669_936
    assert row["trainers"] == ["SASANTrainer", "SASANTrainerDiceCE"]
    # The 3 x 3 x 3 convolutions by hand: (pairs of channels) * 27 * voxels of each level.
    pairs = [1 * 32 + 32 * 32 + 96 * 32 + 32 * 32, 32 * 64 + 64 * 64 + 128 * 64 + 64 * 64]
    pairs += [64 * 128 + 128 * 128 + 256 * 128 + 128 * 128, 128 * 256 + 256 * 256 + 512 * 256 + 256 * 256]
    pairs += [256 * 512 + 512 * 512]
    convolutions = sum(p * 27 * (96 // 2**level) ** 3 for level, p in enumerate(pairs))
    assert convolutions < row["multiply_adds"] < 1.25 * convolutions


def test_networks_for_a_plan(nnunet, capsys):
    arguments = ["networks", "--plans", str(nnunet.plans_file)]
    assert main([*arguments, "--configuration", "2d"]) == 0
    assert "56 x 40, 1 channel(s) in, 3 out" in capsys.readouterr().out
    assert main([*arguments, "--configuration", "4d"]) == 2
    assert "unknown configuration '4d'" in capsys.readouterr().err
    assert main(["networks", "--plans", "nowhere/plans.json"]) == 2
    assert "no such file: nowhere/plans.json" in capsys.readouterr().err


def test_demo_refuses_a_folder_that_is_not_its_own(tmp_path, capsys):
    precious = tmp_path / "thesis.tex"
    precious.write_text("words")
    assert main(["demo", "--folder", str(tmp_path), "--device", "cpu"]) == 2
    assert "is neither empty nor a demo; give another --folder" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    assert main(["demo", "--folder", str(precious), "--device", "cpu"]) == 2


def test_demo_refuses_other_settings_than_it_began_with(tmp_path, capsys):
    Workspace(tmp_path, Settings(iterations=10, device="cpu"))
    assert main(["demo", "--folder", str(tmp_path), "--device", "cpu", "--iterations", "20"]) == 2
    error = capsys.readouterr().err
    assert "holds a demo with other settings" in error
    assert "'iterations': 10" in error


def test_demo_refuses_a_folder_in_which_another_one_works(tmp_path, capsys):
    space = Workspace(tmp_path, Settings(iterations=10, device="cpu"))
    (lock,) = acquire({space.root / "nnUNet_preprocessed" / DATASET / LOCK: "the preparation"}).values()
    before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    try:
        assert main(["demo", "--folder", str(tmp_path), "--device", "cpu", "--iterations", "10"]) == 2
    finally:
        lock.release()
    assert (signal.getsignal(signal.SIGTERM), dict(os.environ)) == before
    assert f"taken by process {os.getpid()}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--trainers", "SASANTrainer", "UNetTrainer"],
            "unknown trainer 'UNetTrainer'; known: EMNetATrainer",
        ),
        (["--trainers", "SASANTrainer", "SASANTrainer"], "named twice"),
        (["--trainers", "SASANTrainer"], "the demo compares trainers; name at least two"),
        (["--iterations", "0"], "--iterations 0 must be at least 1"),
    ],
)
def test_demo_refuses_wrong_options_before_it_writes(tmp_path, capsys, options, message):
    assert main(["demo", "--folder", str(tmp_path / "new"), "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("iterations", "epochs", "per_epoch"), [(200, 4, 50), (3, 1, 3), (75, 2, 50)])
def test_demo_budget(iterations, epochs, per_epoch):
    budget = Settings(iterations, "cpu").budget
    assert (budget.epochs, budget.iterations) == (epochs, per_epoch)
