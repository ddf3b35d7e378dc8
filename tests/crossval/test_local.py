"""Whole runs on this machine through nnU-Net's commands: killed in the middle, resumed, to a report."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch

from nnunet_ext.utils.subprocesses import console_script

pytestmark = pytest.mark.slow


def wait_until(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert condition(), f"not reached; exit code {process.poll()}"


def start(space, **options):
    """In a group of its own, so that a signal reaches it alone."""
    with (space.root / "output.txt").open("w") as output:
        return subprocess.Popen(
            [console_script("nnunet_ext"), *space.options(**options)],
            env=space.environment,
            cwd=space.root,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def epochs_of(log):
    return [int(number) for number in re.findall(r": Epoch (\d+) *$", log.read_text(), re.M)]


def test_killed_in_the_middle_and_resumed_to_the_report(space):
    """From raw data with a plan: two trainers, two folds; killed while the second training runs."""
    shutil.rmtree(space.preprocessed / "nnUNetPlans_2d")
    shutil.rmtree(space.preprocessed / "gt_segmentations")
    (space.preprocessed / "dataset_fingerprint.json").unlink()
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    second = space.results / "SASANTrainer__nnUNetPlans__2d_small" / "fold_0"
    process = start(space)
    wait_until(lambda: list(second.glob("training_log_*.txt")), process)
    running = space.bookkeeping / "running" / "train_SASANTrainer__nnUNetPlans_0.pid"
    child = int(running.read_text().split()[1])
    process.kill()
    process.wait()
    refused = space.crossval()
    assert refused.returncode == 2, refused.stdout
    assert f"process {child} is still at work on train_SASANTrainer__nnUNetPlans_0" in refused.stdout
    os.killpg(child, signal.SIGKILL)

    first = space.results / "StockTrainer__nnUNetPlans__2d_small" / "fold_0"
    written = (first / "checkpoint_final.pth").stat().st_mtime_ns
    done = space.crossval()
    assert done.returncode == 0, done.stdout
    assert (first / "checkpoint_final.pth").stat().st_mtime_ns == written
    assert "running  train_SASANTrainer__nnUNetPlans_0" in done.stdout
    assert "preprocess" not in done.stdout
    for trainer in ("StockTrainer", "SASANTrainer"):
        pooled = space.results / f"{trainer}__nnUNetPlans__2d_small" / "crossval_results_folds_0_1"
        assert len(json.loads((pooled / "summary.json").read_text())["metric_per_case"]) == 4
    assert (space.report / "report.html").is_file()
    again = space.crossval()
    assert again.returncode == 0
    assert "running" not in again.stdout
    assert f"All parts are finished: {space.report / 'report.html'}" in again.stdout


@pytest.mark.long
def test_ctrl_c_and_a_request_leave_what_can_be_gone_on_with(space):
    """SIGUSR1 makes a trainer of ours end after its epoch with a checkpoint, from which it goes on exactly there."""
    space.environment["NNUNET_EXT_EPOCHS"] = "1000"
    options = {"trainers": ["SASANTrainer"], "folds": ["0"]}
    fold = space.results / "SASANTrainer__nnUNetPlans__2d_small" / "fold_0"

    def logs():
        return sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)

    def run_until(number, reached):
        process = start(space, **options)
        wait_until(reached, process)
        process.send_signal(number)
        return process.wait(120), (space.root / "output.txt").read_text()

    code, printed = run_until(signal.SIGUSR1, lambda: logs() and epochs_of(logs()[-1])[-1:] >= [1])
    assert code == 75, printed
    assert "stopped: train_SASANTrainer__nnUNetPlans_0" in printed
    last = epochs_of(logs()[-1])[-1]
    checkpoint = torch.load(fold / "checkpoint_latest.pth", weights_only=False)
    assert checkpoint["current_epoch"] == last + 1
    assert len(checkpoint["logging"]["train_losses"]) == last + 1
    assert f"Ended on request after epoch {last}; nnUNetv2_train --c goes on." in logs()[-1].read_text()

    count = len(logs())
    code, printed = run_until(signal.SIGINT, lambda: len(logs()) > count and len(epochs_of(logs()[-1])) > 1)
    assert code == 130, printed
    assert epochs_of(logs()[-1])[0] == last + 1
    assert not [line for line in processes() if str(space.root) in line]
    assert "resumable   train_SASANTrainer__nnUNetPlans_0" in space.crossval("--dry-run", **options).stdout


def processes():
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.long
def test_a_training_that_fails_does_not_stop_another(space):
    """One trainer cannot write its results."""
    blocked = space.results / "SASANTrainer__nnUNetPlans__2d_small"
    blocked.mkdir()
    (blocked / "fold_0").write_text("a file where a folder should be")
    done = space.crossval(trainers=["SASANTrainer", "StockTrainer"], folds=["0"])
    assert done.returncode == 1, done.stdout
    assert "failed: train_SASANTrainer__nnUNetPlans_0" in done.stdout
    assert "NotADirectoryError" in done.stdout or "FileExistsError" in done.stdout  # the end of its log
    assert "blocked: pool_SASANTrainer__nnUNetPlans, compare" in done.stdout
    assert list(space.results.glob("StockTrainer__*/crossval_results_folds_0/summary.json"))


def test_from_raw_data_alone_all_is_prepared(space):
    """nnU-Net's fingerprint, plan, preprocessing and split, as one part in the foreground."""
    shutil.rmtree(space.preprocessed)
    done = space.crossval("--only", "prepare", configuration="2d")
    assert done.returncode == 0, done.stdout
    states = space.crossval("--dry-run", configuration="2d").stdout
    for part in ("fingerprint", "plan_nnUNetPlans", "preprocess_nnUNetPlans", "unpack_nnUNetPlans"):
        assert f"finished    {part}\n" in states
    assert len(json.loads((space.preprocessed / "splits_final.json").read_text())) == 5


@pytest.mark.long
def test_to_the_predictions_of_an_ensemble(space):
    """The probabilities that an ensemble needs are made for what was trained without."""
    first = space.crossval(trainers=["StockTrainer"], folds=["0"])
    assert first.returncode == 0, first.stdout
    checkpoint = next(space.results.glob("StockTrainer__*/fold_0/checkpoint_final.pth"))
    written = checkpoint.stat().st_mtime_ns
    done = space.crossval("--ensemble", "--test", str(space.raw / "imagesTs"), folds=["0"])
    assert done.returncode == 0, done.stdout
    assert checkpoint.stat().st_mtime_ns == written
    assert list(space.results.glob("ensembles/ensemble___*/summary.json"))
    (case,) = (file.name.replace("_0000", "") for file in (space.raw / "imagesTs").iterdir())
    for name in ("StockTrainer__nnUNetPlans", "SASANTrainer__nnUNetPlans", "ensemble"):
        assert (space.report / "predictions" / name / case).is_file()

    # Made anew, nothing is left of before: not half a mask either.
    (ensemble,) = space.results.glob("ensembles/ensemble___*")
    masks = list(ensemble.rglob("*.nii.gz"))
    whole = masks[0].stat().st_size
    masks[0].write_bytes(masks[0].read_bytes()[: whole // 2])
    (ensemble / "summary.json").unlink()
    again = space.crossval("--ensemble", "--test", str(space.raw / "imagesTs"), folds=["0"])
    assert again.returncode == 0, again.stdout
    assert masks[0].stat().st_size == whole
