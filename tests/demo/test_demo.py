"""The demo, as a user runs it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nnunet_ext.demo.progress import CommandFailed, console_script, count_lines, run_command

CASES = ["hippocampus_089", "hippocampus_193", "hippocampus_288", "hippocampus_374"]


def run_demo(folder, *options):
    return subprocess.run(
        [console_script("nnunet_ext"), "demo", "--folder", str(folder), "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def check_summary(folder: Path, trainers):
    text = (folder / "summary.md").read_text()
    for trainer in trainers:
        assert f"| {trainer} |" in text
        for case in CASES:
            assert (folder / "predictions" / trainer / f"{case}.nii.gz").is_file()
    for picture in ["curves.png", *(f"overlay_{case}.png" for case in CASES)]:
        assert f"({picture})" in text
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_failing_command_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(CommandFailed, match=r"(?s)nnUNetv2_train 1 failed with exit code .*the end of .*required"):
        run_command(
            "Train", ["nnUNetv2_train", "1"], environment=dict(os.environ), log=log, total=1, count_done=lambda: 0
        )


def test_an_unknown_command_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the command nnUNetv9_train is not installed"):
        run_command(
            "Train",
            ["nnUNetv9_train"],
            environment=dict(os.environ),
            log=tmp_path / "log.txt",
            total=1,
            count_done=lambda: 0,
        )


def test_stopping_the_demo_stops_its_command(tmp_path):
    pid_file, seen = tmp_path / "pid", []

    def interrupt():
        seen.append(int(pid_file.read_text()))
        raise KeyboardInterrupt

    command = ["python", "-c", "import time; time.sleep(300)"]
    with pytest.raises(KeyboardInterrupt):
        run_command(
            "Sleep",
            command,
            environment=dict(os.environ),
            log=tmp_path / "log.txt",
            total=1,
            count_done=interrupt,
            pid_file=pid_file,
        )
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
    assert not pid_file.exists()


def test_progress_is_counted_from_the_log(tmp_path):
    log = tmp_path / "log.txt"
    assert count_lines(log, "Epoch time") == 0
    log.write_text("2026-01-01 10:00:00: Epoch 1\n2026-01-01 10:00:05: Epoch time: 5 s\nother\n")
    assert count_lines(log, "Epoch time") == 1


@pytest.mark.slow
def test_interrupted_and_run_again_it_goes_on(tmp_path):
    """Killed in the second training, the demo finishes on the second call and repeats no step; a third does nothing."""
    options = ["--iterations", "4", "--trainers", "SASANTrainer", "StockTrainer"]
    command = [console_script("nnunet_ext"), "demo", "--folder", str(tmp_path / "demo"), "--device", "cpu", *options]
    with (tmp_path / "first.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        results = tmp_path / "demo" / "nnUNet_results" / "Dataset004_Hippocampus"
        deadline = time.monotonic() + 600
        while not list(results.glob("StockTrainer__*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert process.poll() is None, (tmp_path / "first.txt").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = next(results.glob("SASANTrainer__*/fold_0/checkpoint_final.pth"))
    written = finished.stat().st_mtime_ns

    done = run_demo(tmp_path / "demo", *options)
    assert done.returncode == 0, done.stdout
    assert finished.stat().st_mtime_ns == written
    assert "Train SASANTrainer" not in done.stdout
    check_summary(tmp_path / "demo", ["SASANTrainer", "StockTrainer"])

    again = run_demo(tmp_path / "demo", *options)
    assert again.returncode == 0
    assert "%|" not in again.stdout


@pytest.mark.slow
@pytest.mark.long
def test_at_the_default_budget_sasan_learns(tmp_path):
    """The README's command. SASAN's mean foreground Dice on the validation cases is at least 0.5."""
    done = run_demo(tmp_path / "demo")
    assert done.returncode == 0, done.stdout
    check_summary(tmp_path / "demo", ["SASANTrainer", "StockTrainer"])
    results = tmp_path / "demo" / "nnUNet_results" / "Dataset004_Hippocampus"
    summary = next(results.glob("SASANTrainer__*/fold_0/validation/summary.json"))
    assert json.loads(summary.read_text())["foreground_mean"]["Dice"] >= 0.5
