"""docs/own_network.md, line by line: also for a library's network and a trainer that knows nothing of this package."""

import json
import os
import re

import pytest
import torch

from nnunet_ext.bench.setting import Setting
from nnunet_ext.cli.main import main
from nnunet_ext.training.network_trainer import NetworkTrainer
from tests.helpers.fresh_environment import install
from tests.helpers.own_trainers import OLD
from tests.helpers.pages import blocks, page
from tests.helpers.shell import bash
from tests.helpers.workspaces import SHIPPED_CASES, lay_out

PAGE = page("own_network")
DATASET = "Dataset004_Hippocampus"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ON_CPU = {
    "nnunet_ext crossval": " --device cpu -np 1",
    "nnunet_ext bench": " --device cpu --repeats 1 -o bench",
    "nnunet_ext install": " --device cpu",
    "nnunet_ext predict": " -device cpu -npp 1 -nps 1",
}


def commands():
    return [line for block in blocks(PAGE, "bash") for line in block.strip().splitlines()]


def test_the_file_is_complete_and_short(tmp_path, monkeypatch):
    (text,) = blocks(PAGE, "python")
    assert len(text.splitlines()) <= 30
    folder = tmp_path / "my_trainers"
    folder.mkdir()
    (folder / "PoolNetTrainer.py").write_text(text)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    network = Setting.of_patch((16, 24)).build("PoolNetTrainer")
    assert network(torch.randn(2, 1, 16, 24)).shape == (2, 3, 16, 24)


def test_the_table_is_the_trainers():
    named = re.findall(r"^\| `(\w+)", PAGE, re.M)
    assert len(named) > 5
    assert [name for name in named if not hasattr(NetworkTrainer, name)] == []


@pytest.mark.parametrize("network", [None, "monai.networks.nets.UNet", "torch.nn.Conv2d"])
def test_new_writes_a_file_and_says_what_to_export(network, tmp_path, capsys):
    if network is not None and network.startswith("monai"):
        pytest.importorskip("monai")
    options = [] if network is None else ["--network", network]
    arguments = ["new", "FreshTrainer", "-o", str(tmp_path / "mine"), *options]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f'export nnUNet_extTrainer="{tmp_path / "mine"}' in printed
    text = (tmp_path / "mine" / "FreshTrainer.py").read_text()
    compile(text, "FreshTrainer.py", "exec")
    assert ("fill in the arguments" in printed) == (network == "torch.nn.Conv2d")
    assert ('"strides": topology.strides[1:]' in text) == (network == "monai.networks.nets.UNet")
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "SASANTrainer"], "there is a trainer SASANTrainer in"),
        (["new", "1st"], "'1st' is no name of a class"),
        (["new", "Fresh", "--network", "torch.nn.functional"], "'torch.nn.functional' cannot be imported"),
    ],
)
def test_new_names_mistakes(arguments, message, tmp_path, capsys):
    assert main([*arguments, "-o", str(tmp_path / "mine")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def run(script, root, executable):
    """The lines in one shell, outside the checkout, with the smallest budget."""
    environment = {name: str(root / name) for name in FOLDERS}
    environment |= dict.fromkeys(("NNUNET_EXT_EPOCHS", "NNUNET_EXT_ITERATIONS", "NNUNET_EXT_VAL_ITERATIONS"), "1")
    environment |= {"nnUNet_compile": "f", "MPLBACKEND": "Agg", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"} | environment
    return bash(script, environment, root, executable)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    "trainer",
    ["PoolNetTrainer", *(pytest.param(t, marks=pytest.mark.long) for t in ("OldTrainer", "MonaiUNetTrainer"))],
)
def test_every_command(trainer, tmp_path, wheels):
    """In an environment with the wheel and no checkout."""
    (wheel,) = wheels.glob("*.whl")
    for name in (*FOLDERS, "elsewhere", "my_trainers"):
        (tmp_path / name).mkdir()
    lay_out(tmp_path / "nnUNet_raw" / DATASET, SHIPPED_CASES[:10], SHIPPED_CASES[10:12], every=2)
    if trainer == "MonaiUNetTrainer":
        pytest.importorskip("monai")
    else:
        text = OLD if trainer == "OldTrainer" else blocks(PAGE, "python")[0]
        (tmp_path / "my_trainers" / f"{trainer}.py").write_text(text)
    *lines, new = commands()
    assert new.startswith("nnunet_ext new MonaiUNetTrainer")
    if trainer == "MonaiUNetTrainer":
        lines.insert(0, new)
    lines = [line + next((more for start, more in ON_CPU.items() if line.startswith(start)), "") for line in lines]
    installing = next(i for i, line in enumerate(lines) if line.startswith("nnunet_ext install"))
    lines.insert(installing + 1, 'export nnUNet_extTrainer="$(find elsewhere -name trainers)"')  # as it prints
    lines.insert(installing, 'export nnUNet_results="$PWD/elsewhere"')
    lines.insert(installing, "unset nnUNet_extTrainer && rm -r my_trainers")
    script = "\n".join(lines).replace("PoolNet", trainer.removesuffix("Trainer"))
    script = script.replace("INPUT", str(tmp_path / "nnUNet_raw" / DATASET / "imagesTs")).replace("OUTPUT", "masks")
    printed = run(script, tmp_path, install(wheel, tmp_path))

    assert f"{trainer} works." in printed
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 2
    name = trainer.removesuffix("Trainer")
    report = json.loads((tmp_path / "my_report" / "summary.json").read_text())
    own = f"{trainer}__nnUNet{name}Plans"
    assert set(report["entrants"]) == {"StockTrainer__nnUNetPlans", own}
    assert report["costs"][own]["parameters"] > 0
    bench = (tmp_path / "bench" / "networks_cpu.csv").read_text()
    assert "PlainConvUNet" in bench
    assert trainer in bench
    plans = json.loads((tmp_path / "nnUNet_preprocessed" / DATASET / f"nnUNet{name}Plans.json").read_text())
    network = plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"]
    expected = {"PoolNetTrainer": "PoolNetTrainer.PoolNet", "MonaiUNetTrainer": "monai.networks.nets.unet.UNet"}
    assert network == expected.get(trainer, "dynamic_network_architectures.architectures.unet.PlainConvUNet")
