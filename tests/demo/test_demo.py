"""The demo, as a user runs it."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nnunet_ext.demo import run as demo
from nnunet_ext.demo.summary import summary_text
from nnunet_ext.demo.workspace import DATASET, Settings, Workspace
from nnunet_ext.utils.subprocesses import console_script

TRAINERS = ["SASANTrainer", "StockTrainer"]


def command(folder, *options):
    return [console_script("nnunet_ext"), "demo", "--folder", str(folder), "--device", "cpu", *options]


def run_demo(folder, *options):
    return subprocess.run(
        command(folder, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def check_report(folder: Path, printed: str):
    """The page exists, its path ends the output, and the table has the numbers of nnU-Net's validation."""
    page = folder / "report" / "report.html"
    assert page.is_file()
    assert printed.rstrip().endswith(f"Report: {page.resolve()}")
    for trainer in TRAINERS:
        file = next((folder / "nnUNet_results" / DATASET).glob(f"{trainer}__*/fold_0/validation/summary.json"))
        dice = json.loads(file.read_text())["foreground_mean"]["Dice"]
        (line,) = re.findall(rf"^{trainer} .*$", printed, re.M)
        assert float(line.split()[-1]) == pytest.approx(dice, abs=6e-4)


def test_trainings_follow_each_other_and_their_threads_wait_without_spinning():
    (slot,) = demo.training_slots("cpu")
    assert slot.environment == {"OMP_WAIT_POLICY": "PASSIVE", "nnUNet_n_proc_DA": "0"}
    assert len(demo.training_slots("mps")) == 1


def test_momentum_and_rate_suit_few_iterations(tmp_path):
    """With nnU-Net's own, trainings now and then miss one of the two classes."""
    environment = Workspace(tmp_path / "demo", Settings(50, "cpu")).environment()
    assert (environment["NNUNET_EXT_MOMENTUM"], environment["NNUNET_EXT_LEARNING_RATE"]) == ("0.9", "0.03")


def test_the_summary_names_trainers_labels_and_verdict(tmp_path):
    means = [
        {"entrant": name, "metric": "dice", "label": label, "mean_of_labels": label == "mean", "mean": value}
        for name, values in (("A", (0.5, 0.7, 0.6)), ("B", (0.9, 0.7, 0.8)))
        for label, value in zip(("left", "right", "mean"), values, strict=True)
    ]
    means.append({"entrant": "A", "metric": "nsd", "label": "left", "mean_of_labels": False, "mean": 0.1})
    content = {"labels": {"left": 1, "right": 2}, "entrants": ["A", "B"], "cases": 5, "headline": "B is better than A."}
    (tmp_path / "summary.json").write_text(json.dumps(content | {"means": means}))
    lines = summary_text(tmp_path / "summary.json").splitlines()
    assert lines[0] == "Dice of the 5 validation cases:"
    assert [line.split() for line in lines[1:4]] == [
        ["trainer", "left", "right", "mean"],
        ["A", "0.500", "0.700", "0.600"],
        ["B", "0.900", "0.700", "0.800"],
    ]
    assert lines[-1] == "B is better than A."


@pytest.mark.slow
def test_interrupted_and_run_again_it_resumes(tmp_path):
    """Stopped by Ctrl-C in a training, it finishes on the second call and repeats no step; a third does nothing."""
    folder, options = tmp_path / "demo", ["--iterations", "100"]
    with (tmp_path / "first.txt").open("w") as output:
        process = subprocess.Popen(
            command(folder, *options), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        results = folder / "nnUNet_results" / DATASET
        deadline = time.monotonic() + 900
        while not list(results.glob("*/fold_0/checkpoint_*.pth")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    first = (tmp_path / "first.txt").read_text()
    assert "Run the same command to resume." in first
    plans = folder / "nnUNet_preprocessed" / DATASET / "nnUNetPlans.json"
    assert json.loads(plans.read_text())["configurations"]["3d_fullres"]["spacing"] == [2, 2, 2]

    done = run_demo(folder, *options)
    assert done.returncode == 0, done.stdout
    assert "preprocess_" not in done.stdout
    check_report(folder, done.stdout)

    again = run_demo(folder, *options)
    assert again.returncode == 0
    assert "running" not in again.stdout
    check_report(folder, again.stdout)


@pytest.mark.slow
@pytest.mark.long
def test_at_the_default_budget_both_trainers_learn(tmp_path):
    """The README's command: mean foreground Dice of the validation cases of at least 0.75 with either trainer."""
    done = run_demo(tmp_path / "demo")
    assert done.returncode == 0, done.stdout
    check_report(tmp_path / "demo", done.stdout)
    for trainer in TRAINERS:
        (line,) = re.findall(rf"^{trainer} .*$", done.stdout, re.M)
        assert float(line.split()[-1]) >= 0.75
