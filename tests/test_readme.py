"""The README's commands and snippets, the examples and the table, run or compared."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BUDGET = {"NNUNET_EXT_EPOCHS": "1", "NNUNET_EXT_ITERATIONS": "1", "NNUNET_EXT_VAL_ITERATIONS": "1"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def bash(script, environment, cwd):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment | {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_python_snippets_run():
    assert blocks("python")
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), {})


def test_continuous_integration_installs_and_tests_as_the_readme_says():
    (line,) = [block.strip() for block in blocks("bash") if "[test]" in block]
    install, test = line.split(" && ")
    script = (ROOT / ".ci" / "run").read_text()
    assert install.removeprefix("pip install ") in script
    assert f"\n{test}\n" in script


def test_the_demo_command_is_the_one_that_is_tested():
    (line,) = [block.strip() for block in blocks("bash") if "nnunet_ext demo" in block]
    assert line == "pip install -e . && nnunet_ext demo"  # test_demo.py runs the second part at its defaults


def test_crossval_command(nnunet, tmp_path):
    (line,) = [block.strip() for block in blocks("bash") if "nnunet_ext crossval" in block]
    printed = bash(f"{line} --device cpu --dry-run", nnunet.environment, tmp_path)
    for trainer in ("nnUNetTrainer", "SASANTrainer", "EMNetTrainer"):
        assert f"nnUNetv2_train 4 3d_fullres 4 -tr {trainer}" in printed


def test_import_command(golden, tmp_path):
    torch.save(golden("sasan").state_dict, tmp_path / "AUTHORS.pth")
    (line,) = [block for block in blocks("bash") if "import-weights" in block]
    bash(line, dict(os.environ), tmp_path)
    assert (tmp_path / "PRETRAINED.pth").is_file()


def measured(name, *keys):
    """Rows of a committed measurement by the values of columns."""
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open() as file:
        return {tuple(row[key] for key in keys): row for row in csv.DictReader(file)}


def test_the_tables_are_the_committed_measurements():
    assert sasan_table(measured("sasan_cpu", "what")) in README
    assert em_net_table(measured("em_net_cpu", "what", "scan")) in README
    assert scan_table(measured("selective_scan_cpu", "what", "method")) in README
    assert lstm_table(measured("lstm_sa_cpu", "what")) in README
    assert gaussian_table(measured("gaussian_attention_cpu", "positions", "what", "method")) in README
    assert few_shot_table(measured("few_shot_hippocampus", "support", "method")) in README


def test_sizes_are_those_of_the_networks_command():
    from nnunet_ext.planning.cost import network_costs

    costs = {row["name"]: row for row in network_costs(None, "")}
    sasan = costs["sasan"]
    assert f"| parameters | {sasan['parameters'] / 1e6:.1f} M | the same | |" in README
    assert f"| multiply-adds | {sasan['multiply_adds'] / 1e9:.0f} G | | |" in README
    for name in ("em_net", "lstmsa"):
        sizes = f"{costs[name]['parameters'] / 1e6:.1f} M parameters, {costs[name]['multiply_adds'] / 1e9:.0f} G"
        assert f"{sizes} multiply-adds" in README


def sasan_table(rows):
    forward, step, loss = (rows[(what,)] for what in ("forward", "forward + backward", "SM loss, forward + backward"))
    lines = []
    for title, row in (("forward", forward), ("forward + backward", step)):
        ours, plain, times = (float(row[key]) for key in ("ours_s", "plain_s", "times_faster"))
        lines.append(f"| {title}, seconds | {ours:.1f} | {plain:.1f} | {times:.1f} times faster |")
        ours, plain, part = (float(row[key]) for key in ("ours_added_GB", "plain_added_GB", "added_ratio"))
        lines.append(f"| {title}, peak memory | {ours:.1f} GB | {plain:.1f} GB | {part:.2f} |")
    lines.append(
        f"| SM loss on {loss['setting']}, forward + backward, seconds | {float(loss['ours_s']):.3f} | "
        f"{float(loss['plain_s']):.3f} | {float(loss['times_faster']):.1f} times faster |"
    )
    return "\n".join(lines)


def em_net_table(rows):
    titles = {"cpu": "C extension", "torch": "plain PyTorch", "multiplication": "multiplication"}
    lines = ["| | scan | seconds | of the multiplication's | peak memory |", "|---|---|---|---|---|"]
    for (what, scan), row in rows.items():
        seconds, part, memory = (float(row[key]) for key in ("seconds", "of_multiplication", "added_GB"))
        lines.append(f"| {what} | {titles[scan]} | {seconds:.2f} | {part:.2f} | {memory:.1f} GB |")
    return "\n".join(lines)


def scan_table(rows):
    titles = {"mambapy": "mambapy", "extension": "C extension", "segments": "plain PyTorch"}
    lines = ["| | scan | milliseconds | against mambapy | extra memory, in sizes of u |", "|---|---|---|---|---|"]
    for (what, method), row in rows.items():
        time, times, memory = (
            float(row[key]) for key in ("milliseconds", "times_faster_than_mambapy", "extra_memory_in_sizes_of_u")
        )
        ratio = "" if method == "mambapy" else f"{times:.0f} times faster"
        lines.append(f"| {what} | {titles[method]} | {time:.0f} | {ratio} | {memory:.0f} |")
    return "\n".join(lines)


def lstm_table(rows):
    lines = ["| | setting | seconds | slice by slice | | peak memory |", "|---|---|---|---|---|---|"]
    for (what,), row in rows.items():
        slices = f"{float(row['slices_s']):.2f}" if row["slices_s"] else ""
        ratio = f"{float(row['times_faster']):.1f} times faster" if row["times_faster"] else ""
        memory = f"{float(row['added_GB']):.1f} GB" if row["added_GB"] else ""
        lines.append(f"| {what} | {row['setting']} | {float(row['volume_s']):.2f} | {slices} | {ratio} | {memory} |")
    return "\n".join(lines)


def few_shot_table(rows):
    lines = ["| method | Dice, mean of 5 supports | lowest and highest |", "|---|---|---|"]
    for method in dict.fromkeys(method for _, method in rows):
        dice = [float(row["dice"]) for (_, m), row in rows.items() if m == method]
        assert len(dice) == 5
        lines.append(f"| {method} | {sum(dice) / 5:.2f} | {min(dice):.2f} to {max(dice):.2f} |")
    return "\n".join(lines)


def gaussian_table(rows):
    lines = ["| positions | | loop, ms | vectorised, ms | |", "|---|---|---|---|---|"]
    for (positions, what, method), row in rows.items():
        if method == "vectorised":
            loop = float(rows[positions, what, "loop"]["milliseconds"])
            times = float(row["times_faster_than_loop"])
            milliseconds = float(row["milliseconds"])
            lines.append(f"| {positions} | {what} | {loop:.1f} | {milliseconds:.2f} | {times:.0f} times faster |")
    return "\n".join(lines)


@pytest.mark.slow
def test_nnunet_commands(nnunet, tmp_path):
    """In folders of their own, on the CPU and with the smallest budget."""
    (script,) = [block for block in blocks("bash") if "nnUNetv2_train 4" in block]
    folders = {name: str(tmp_path / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir()
    raw = tmp_path / "nnUNet_raw" / nnunet.dataset
    shutil.copytree(nnunet.raw, raw)
    script = script.replace("-tr SASANTrainer", "-tr SASANTrainer -device cpu")
    script = script.replace("INPUT", str(raw / "imagesTs")).replace("OUTPUT", str(tmp_path / "out"))
    environment = {k: v for k, v in nnunet.environment.items() if k != "nnUNet_extTrainer"}
    printed = bash(script, environment | folders | BUDGET, tmp_path)
    assert "Everything needed is there." in printed
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 1


@pytest.mark.slow
def test_plan_command(nnunet, tmp_path):
    (line,) = [block for block in blocks("bash") if "nnunet_ext plan" in block]
    assert "-p nnUNetSASANPlans" in README
    assert "Written: " in bash(line, nnunet.environment, tmp_path)
    assert (nnunet.preprocessed / "nnUNetSASANPlans.json").is_file()


@pytest.mark.slow
def test_examples(nnunet, tmp_path):
    bash(f"bash '{ROOT}/examples/demo.sh' '{tmp_path}/a b' cpu", nnunet.environment | BUDGET, tmp_path)
    assert len(list((tmp_path / "a b" / "predictions" / "SASANTrainer").glob("*.nii.gz"))) == 4
    model = tmp_path / "a b" / "nnUNet_results" / nnunet.dataset / "SASANTrainer__nnUNetPlans__3d_demo"
    scan = next((tmp_path / "a b" / "nnUNet_raw" / nnunet.dataset / "imagesTs").iterdir())
    script = f"python '{ROOT}/examples/predict_one_scan.py' '{model}' '{scan}' mask.nii.gz --device cpu"
    bash(script, nnunet.environment, tmp_path)
    compare_masks(tmp_path / "mask.nii.gz", tmp_path / "a b" / "predictions" / "SASANTrainer", scan)


def compare_masks(ours, predictions, scan):
    """The Python example gives what nnUNetv2_predict gave for the scan."""
    import SimpleITK as sitk

    theirs = predictions / scan.name.replace("_0000.nii.gz", ".nii.gz")
    a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (ours, theirs))
    assert a.shape == b.shape
    assert (a == b).mean() > 0.999
