"""A real Slurm of one node, started by slurm/start.sh."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "slurm"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        ["bash", str(SCRIPTS / "start.sh"), str(folder)], stderr=subprocess.PIPE, text=True, check=False
    )
    try:
        if started.returncode == 77:
            pytest.skip(started.stderr.strip().splitlines()[-1])
        assert started.returncode == 0, started.stderr
        yield {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run(["bash", str(SCRIPTS / "stop.sh"), str(folder)], check=False)


@pytest.fixture
def ask(slurm):
    """Asks one of Slurm's commands."""

    def run(*command):
        return subprocess.run(
            command, env=os.environ | slurm, capture_output=True, text=True, check=True
        ).stdout.strip()

    yield run
    run("scancel", "--user=root")


@pytest.fixture
def wait(ask, space):
    def until(condition, seconds=600):
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.5)
        logs = "\n".join(file.read_text()[-1500:] for file in sorted((space.bookkeeping / "logs").glob("*.txt")))
        assert condition(), f"{ask('squeue')}\n{logs}"

    return until


def test_array_and_dependencies_run_to_the_report(space, slurm, ask, wait):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)
    submitted = space.crossval("--slurm", environment=slurm)
    assert submitted.returncode == 0, submitted.stdout
    waiting = ask("squeue", "--noheader", "--array", "--format=%j %i %E")
    assert waiting.count("train_StockTrainer") == 2
    assert "afterok" in next(line for line in waiting.splitlines() if "pool_SASANTrainer" in line)
    again = space.crossval("--slurm", environment=slurm)
    assert again.returncode == 1
    assert "are still in the queue" in again.stdout
    wait(lambda: not ask("squeue", "--noheader"))
    for trainer in ("StockTrainer", "SASANTrainer"):
        model = space.results / f"{trainer}__nnUNetPlans__2d_small"
        assert (model / "crossval_results_folds_0_1" / "summary.json").is_file()
    assert (space.report / "report.html").is_file()
    assert "All parts are finished." in space.crossval("--slurm", environment=slurm).stdout


@pytest.mark.long
def test_a_training_that_reaches_its_time_limit_is_resumed(space, slurm, ask, wait):
    """Two minutes are too short for its epochs: it is requeued with a checkpoint, and what waits for it waits on."""
    epochs = space.root / "epochs.txt"
    epochs.write_text("100000")
    preamble = space.root / "preamble.sh"
    preamble.write_text(f"NNUNET_EXT_EPOCHS=$(cat '{epochs}')\n")
    limits = ["--time", "2", "--warn-before", "40", "--preamble", str(preamble)]
    submitted = space.crossval("--slurm", *limits, trainers=["SASANTrainer"], folds=["0"], environment=slurm)
    assert submitted.returncode == 0, submitted.stdout
    job = next(line.split()[0] for line in submitted.stdout.splitlines() if " train_SASAN" in line)
    fold = space.results / "SASANTrainer__nnUNetPlans__2d_small" / "fold_0"
    wait(lambda: "Restarts=1" in ask("scontrol", "show", "job", f"{job}_0"))
    wait(lambda: (fold / "checkpoint_latest.pth").is_file(), 10)
    done = torch.load(fold / "checkpoint_latest.pth", weights_only=False)["current_epoch"]
    assert done >= 1
    assert "pool_SASAN" in ask("squeue", "--noheader", "--states=PENDING", "--format=%j")
    epochs.write_text(str(done + 2))
    wait(lambda: not ask("squeue", "--noheader"))
    assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == done + 2
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda file: file.stat().st_mtime)
    epochs_run = re.findall(r": Epoch (\d+) *$", "".join(log.read_text() for log in logs), re.M)
    assert epochs_run == [str(epoch) for epoch in range(done + 2)]  # each once
    assert (fold.parent / "crossval_results_folds_0" / "summary.json").is_file()


def test_a_refused_job_withdraws_those_before_it(space, slurm, ask):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)  # so that there is something to prepare first
    refused = space.crossval("--slurm", "--gpu-job-option=--partition=nowhere", environment=slurm)
    assert refused.returncode != 0
    assert re.search("^[0-9]+ prepare$", refused.stdout, re.M)
    assert "invalid partition" in refused.stdout.lower()
    assert ask("squeue", "--noheader", "--states=PENDING,RUNNING") == ""  # one that had begun needs a moment to end


def test_slurm_accepts_every_script(space, slurm):
    (space.preprocessed / "splits_final.json").unlink(missing_ok=True)  # so that there is something to prepare
    assert space.crossval("--slurm", "--dry-run", "--ensemble", environment=slurm).returncode == 0
    scripts = sorted(set((space.bookkeeping / "slurm").glob("*.sh")) - {space.bookkeeping / "slurm" / "submit.sh"})
    assert len(scripts) == 7
    for script in scripts:
        done = subprocess.run(
            ["sbatch", "--test-only", str(script)], env=os.environ | slurm, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
