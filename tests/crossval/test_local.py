"""Whole runs on this machine through nnU-Net's commands: killed, resumed, and completed to a report."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import torch

from nnunet_ext.utils.locks import read_holder
from nnunet_ext.utils.subprocesses import console_script, is_running

# Left out of continuous integration until it has passed on a quiet machine.
pytestmark = [pytest.mark.slow, pytest.mark.long]


def wait_until(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert condition(), f"not reached; exit code {process.poll()}"


def start(space, name="output", **options):
    """In a group of its own, so that a signal reaches it alone."""
    with (space.root / f"{name}.txt").open("w") as output:
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
    wait_until(lambda: any("Epoch 0" in log.read_text() for log in second.glob("training_log_*.txt")), process)
    lock = space.results / "crossval" / "locks" / "SASANTrainer__nnUNetPlans__2d_small__fold_0.lock"
    child = read_holder(lock).processes[-1][0]
    os.killpg(child, signal.SIGSTOP)  # it would end while the status is read
    assert re.search(
        r"^running +train_SASANTrainer__nnUNetPlans_0  epoch [01]/1  .*process", space.crossval("--status").stdout, re.M
    )
    process.kill()
    process.wait()
    refused = space.crossval()
    assert refused.returncode == 2, refused.stdout
    assert f"train_SASANTrainer__nnUNetPlans_0 is taken by process {child} on " in refused.stdout
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
    assert f"All steps are finished: {space.report / 'report.html'}" in again.stdout


@pytest.mark.long
def test_ctrl_c_and_a_request_leave_what_can_be_gone_on_with(space):
    """SIGUSR1 makes a trainer of ours end after its epoch with a checkpoint, from which it resumes exactly."""
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
    assert f"Ended on request after epoch {last}; nnUNetv2_train --c resumes." in logs()[-1].read_text()

    count = len(logs())
    code, printed = run_until(signal.SIGINT, lambda: len(logs()) > count and len(epochs_of(logs()[-1])) > 1)
    assert code == 130, printed
    assert epochs_of(logs()[-1])[0] == last + 1
    assert not [line for line in processes() if str(space.root) in line]
    assert "resumable   train_SASANTrainer__nnUNetPlans_0" in space.crossval("--dry-run", **options).stdout


def processes():
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()


def run_in_shell(space, line, **options):
    """Starts a command line in a shell that ends at once, as at logout; the process of the run."""
    command = " ".join(shlex.quote(word) for word in (console_script("nnunet_ext"), *space.options(**options)))
    output = space.root / "output.txt"
    line = line.format(command=command, output=shlex.quote(str(output)))
    printed = subprocess.run(
        ["bash", "-c", line], env=space.environment, cwd=space.root, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(printed.stdout.split()[-1]), output


def wait_for_end(number, seconds=300):
    deadline = time.monotonic() + seconds
    while is_running(number) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not is_running(number)


def test_nohup_outlives_its_shell_and_still_ends_on_sigterm(space):
    """SIGHUP at logout is ignored, as nohup asked; a background job has SIGINT ignored too, its trainings do not."""
    space.environment["NNUNET_EXT_EPOCHS"] = "1000"
    fold = space.results / "SASANTrainer__nnUNetPlans__2d_small" / "fold_0"
    line = "nohup {command} > {output} 2>&1 & echo $!"
    number, output = run_in_shell(space, line, trainers=["SASANTrainer"], folds=["0"])
    deadline = time.monotonic() + 300
    while not list(fold.glob("training_log_*.txt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(number, signal.SIGHUP)
    os.kill(number, signal.SIGINT)
    time.sleep(3)
    assert is_running(number), output.read_text()
    lock = space.results / "crossval" / "locks" / "SASANTrainer__nnUNetPlans__2d_small__fold_0.lock"
    child = read_holder(lock).processes[-1][0]
    os.kill(number, signal.SIGTERM)
    wait_for_end(number, 60)
    assert not is_running(child)
    assert not lock.exists()


def test_without_nohup_sighup_ends_a_run(space):
    space.environment["NNUNET_EXT_EPOCHS"] = "1000"
    fold = space.results / "SASANTrainer__nnUNetPlans__2d_small" / "fold_0"
    process = start(space, trainers=["SASANTrainer"], folds=["0"])
    wait_until(lambda: list(fold.glob("training_log_*.txt")), process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 130
    assert not [line for line in processes() if str(space.root) in line]


def test_two_runs_started_together_train_once(space):
    """One run is told who holds the preparation or the training; the other finishes; then nothing is missing."""
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    options = {"trainers": ["SASANTrainer"], "folds": ["0"]}
    both = [start(space, name=name, **options) for name in ("first", "second")]
    codes = sorted(process.wait(600) for process in both)
    printed = [(space.root / f"{name}.txt").read_text() for name in ("first", "second")]
    assert codes == [0, 2], printed
    assert sum(" is taken by process " in text for text in printed) == 1
    fold = space.results / "SASANTrainer__nnUNetPlans__2d_small" / "fold_0"
    assert len(list(fold.glob("training_log_*.txt"))) == 1


@pytest.mark.long
def test_a_run_waits_for_another_one(space):
    options = {"trainers": ["SASANTrainer"], "folds": ["0"]}
    first = start(space, name="first", **options)
    lock = space.results / "crossval" / "locks" / "SASANTrainer__nnUNetPlans__2d_small__fold_0.lock"
    wait_until(lock.is_file, first)
    waited = space.crossval("--wait", **options)
    assert first.wait(600) == 0
    assert waited.returncode == 0, waited.stdout
    assert "is taken by process" in waited.stdout
    assert "running  train_" not in waited.stdout


@pytest.mark.long
def test_a_prediction_and_a_preprocessing_resume(space):
    """A killed run keeps its finished steps and repeats those that were cut off."""
    data = space.preprocessed / "nnUNetPlans_2d"
    shutil.rmtree(data)
    graph = space.graph(trainers=["SASANTrainer"], folds=(0,))
    step = graph.nodes["preprocess_nnUNetPlans"]
    step.before()
    space.nnunet.run("nnUNetv2_preprocess", *step.command()[1:], **space.environment)
    cases = sorted(data.glob("*.pkl"))
    written = cases[0].stat().st_mtime_ns
    cases[-1].write_bytes(cases[-1].read_bytes()[:100])
    assert step.command()[1:3] == ["-m", "nnunet_ext.crossval.preprocess"]
    done = space.crossval(trainers=["SASANTrainer"], folds=["0"])
    assert done.returncode == 0, done.stdout
    assert cases[0].stat().st_mtime_ns == written

    images = space.raw / "imagesTs"
    (image,) = images.glob("*_0000.nii.gz")
    for name in ("x", "y"):
        shutil.copy(image, images / f"{name}_0000.nii.gz")
    options = ["--test", str(images)]
    first = space.crossval(*options, trainers=["SASANTrainer"], folds=["0"])
    assert first.returncode == 0, first.stdout
    target = space.report / "predictions" / "SASANTrainer__nnUNetPlans"
    masks = sorted(target.glob("*.nii.gz"))
    assert len(masks) == 3
    partial = target.with_name(f"{target.name}.partial")
    target.rename(partial)
    kept, cut = partial / masks[0].name, partial / masks[1].name
    (partial / masks[2].name).unlink()
    written, whole = kept.stat().st_mtime_ns, cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[: whole // 2])
    again = space.crossval(*options, trainers=["SASANTrainer"], folds=["0"])
    assert again.returncode == 0, again.stdout
    assert masks[0].stat().st_mtime_ns == written
    assert masks[1].stat().st_size == whole
    assert masks[2].is_file()


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
    """nnU-Net's fingerprint, plan, preprocessing and split, as one step in the foreground."""
    shutil.rmtree(space.preprocessed)
    done = space.crossval("--only", "prepare", configuration="2d")
    assert done.returncode == 0, done.stdout
    states = space.crossval("--dry-run", configuration="2d").stdout
    for part in ("fingerprint", "plan_nnUNetPlans", "preprocess_nnUNetPlans", "unpack_nnUNetPlans"):
        assert f"finished    {part}\n" in states
    assert len(json.loads((space.preprocessed / "splits_final.json").read_text())) == 5


@pytest.mark.long
def test_to_the_predictions_of_an_ensemble(space):
    """The probabilities that an ensemble needs are made for folds that were trained without them."""
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
    summary = json.loads((space.report / "summary.json").read_text())
    assert len(summary["ensemble"]["models"]) == 2
    assert [row["masks"] for row in summary["masks"]] == [1, 1, 1]

    # Remade, nothing is left of the earlier run, not even half a mask.
    (ensemble,) = space.results.glob("ensembles/ensemble___*")
    masks = list(ensemble.rglob("*.nii.gz"))
    whole = masks[0].stat().st_size
    masks[0].write_bytes(masks[0].read_bytes()[: whole // 2])
    (ensemble / "summary.json").unlink()
    again = space.crossval("--ensemble", "--test", str(space.raw / "imagesTs"), folds=["0"])
    assert again.returncode == 0, again.stdout
    assert masks[0].stat().st_size == whole


@pytest.mark.long
def test_a_cascade_to_its_predictions(space):
    """All folds of the earlier stage, whose validations are the input of the next one; then both stages predict."""
    file = space.preprocessed / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    lowres = {"data_identifier": "nnUNetPlans_3d_lowres", "spacing": [2, 2, 2], "next_stage": "3d_cascade_fullres"}
    configurations["3d_lowres"] = configurations["3d_fullres_tiny"] | lowres
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres_tiny", "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans))
    options = {"trainers": ["SASANTrainer"], "folds": ["0"], "configuration": "3d_cascade_fullres"}
    done = space.crossval("--test", str(space.raw / "imagesTs"), **options)
    assert done.returncode == 0, done.stdout
    name = "SASANTrainer__nnUNetPlans"
    assert len(list((space.results / f"{name}__3d_lowres").glob("fold_*/checkpoint_final.pth"))) == 5
    assert (space.results / f"{name}__3d_cascade_fullres" / "crossval_results_folds_0" / "summary.json").is_file()
    (case,) = (file.name.replace("_0000", "") for file in (space.raw / "imagesTs").iterdir())
    for stage in (f"3d_lowres_{name}", name):
        assert (space.report / "predictions" / stage / case).is_file()
    again = space.crossval("--test", str(space.raw / "imagesTs"), "--dry-run", **options)
    assert "not started" not in again.stdout
