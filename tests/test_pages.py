"""Runs the commands and snippets of the pages of docs; docs/own_network.md has a test file of its own."""

import argparse
import json
import os
import re
import shutil

import pytest
import torch

from nnunet_ext.cli import bench
from tests.helpers.pages import block, blocks, page
from tests.helpers.paths import TESTS
from tests.helpers.shell import bash

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
WITH_SNIPPETS = ("baselines", "lstm_sa", "planning", "python", "transfer")


@pytest.mark.parametrize("name", WITH_SNIPPETS)
def test_python_snippets_run(name):
    snippets = blocks(page(name), "python")
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, f"{name}.md", "exec"), {})


def test_import_command(golden, tmp_path):
    torch.save(golden("sasan").state_dict, tmp_path / "AUTHORS.pth")
    bash(block(page("python"), "bash", "import-weights"), dict(os.environ), tmp_path)
    assert (tmp_path / "PRETRAINED.pth").is_file()


def test_adapt_command(tmp_path):
    model = TESTS / "data" / "version_0_1_0" / "SASANTrainer"
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] = plans["configurations"]["tiny"]
    (tmp_path / "PLANS.json").write_text(json.dumps(plans))
    shutil.copy(model / "dataset.json", tmp_path)
    shutil.copy(model / "fold_all" / "checkpoint_final.pth", tmp_path / "CHECKPOINT.pth")
    assert "taken unchanged" in bash(block(page("transfer"), "bash", "adapt-weights"), dict(os.environ), tmp_path)
    assert (tmp_path / "PRETRAINED.pth").is_file()


def test_bench_command():
    """It takes too long to be run; tests/bench runs smaller ones."""
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    arguments = parser.parse_args(block(page("bench"), "bash", "nnunet_ext bench").split()[2:])
    assert (arguments.patch, arguments.batch_size) == ([40, 56, 40], 2)


def test_slurm_command(nnunet, tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "modules.sh").write_text("module load cuda\n")
    script = block(page("slurm"), "bash", "nnunet_ext crossval").split("\n", 1)[1]  # behind the installation
    assert "--partition=gpu --account=me" in bash(f"{script} --dry-run", nnunet.environment, tmp_path)


@pytest.mark.slow
def test_plan_command(nnunet, tmp_path):
    line = block(page("planning"), "bash", "nnunet_ext plan")
    assert "-p nnUNetSASANPlans" in page("planning")
    assert "Written: " in bash(line, nnunet.environment, tmp_path)
    assert (nnunet.preprocessed / "nnUNetSASANPlans.json").is_file()


@pytest.mark.slow
def test_sizes_are_those_of_the_networks_command():
    from torch._subclasses.fake_tensor import FakeTensorMode

    from nnunet_ext.networks import NETWORKS
    from nnunet_ext.profiling.counts import network_costs

    costs = {row["name"]: row for row in network_costs(None, "")}
    for name, where in (("sasan", "sasan"), ("em_net", "em_net"), ("lstmsa", "lstm_sa")):
        sizes = f"{costs[name]['parameters'] / 1e6:.1f} M parameters, {costs[name]['multiply_adds'] / 1e9:.0f} G"
        assert f"{sizes} multiply-adds" in " ".join(page(where).split())
    sasan = NETWORKS["sasan"]
    with FakeTensorMode():
        masks = sum(fine.mask.numel() for fine in sasan.network(**sasan.paper).encoder.fine)
    said = f"they are {masks / 1e6:.1f} of its {costs['sasan']['parameters'] / 1e6:.1f} million parameters"
    assert said in page("limits")


@pytest.mark.slow
def test_tutorial_share_and_resume(tmp_path):
    """Every line of the three pages, in one shell: a few of the scans, one iteration for each training."""
    tutorial = blocks(page("tutorial"), "bash")
    # The tutorial ends with the full budget; to resume with it would be to train for days.
    budget = next(line for line in "\n".join(tutorial).splitlines() if line.startswith("export NNUNET_EXT_EPOCHS"))
    lines = [*tutorial, budget, *blocks(page("resume"), "bash")[:1], *blocks(page("share"), "bash")]
    script = "\n".join(lines)
    script = re.sub(r"(NNUNET_EXT_\w+)=\d+", r"\1=1", script)
    script = re.sub(r"(images|labels)(Tr|Ts)/\*", r"\1\2/hippocampus_0*", script)
    script = script.replace(" -device cpu", " -device cpu -npp 1 -nps 1", 1)
    install = "nnunet_ext install"
    script = script.replace(install, f'mkdir elsewhere && export nnUNet_results="$PWD/elsewhere"\n{install}')
    (tmp_path / "to_nnunet.py").write_text(block(page("tutorial"), "python", "generate_dataset_json"))
    unset = {"nnUNet_extTrainer", "NNUNET_EXT_EPOCHS", "NNUNET_EXT_ITERATIONS", "NNUNET_EXT_VAL_ITERATIONS", *FOLDERS}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"nnUNet_compile": "f", "MPLBACKEND": "Agg", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    printed = bash(script, environment, tmp_path)

    assert "Everything needed is installed." in printed
    assert (tmp_path / "report" / "report.html").is_file()
    assert "plan_nnUNetEMNetPlans" in printed
    (mask,) = (tmp_path / "new_masks").glob("*.nii.gz")
    assert (tmp_path / "masks_from_zip" / mask.name).read_bytes() == mask.read_bytes()
