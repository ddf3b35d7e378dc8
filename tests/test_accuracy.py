"""`python -m benchmarks.accuracy` on shipped scans, with nnU-Net's own commands."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import SHIPPED_CASES, lay_out

TRAINERS = ("StockTrainer", "FAFNetTrainer")


@pytest.fixture
def experiment(tmp_path):
    """Runs it on ten thinned-out scans, and returns the rows of its two files."""
    data, results = tmp_path / "Dataset004_Hippocampus", tmp_path / "results"
    lay_out(data, SHIPPED_CASES[:10], every=2)

    def run(*options):
        budget = ["--epochs", "1", "--iterations", "2", "--batch-size", "3", "--spacing", "3", "2", "2"]
        folders = ["--data", str(data), "--work", str(tmp_path / "work"), "--results", str(results)]
        command = [sys.executable, "-m", "benchmarks.accuracy", *folders, "--name", "tiny", *budget, *options]
        environment = os.environ | {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "MPLBACKEND": "Agg"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        files = [results / f"accuracy_tiny{end}.csv" for end in ("", "_cases")]
        return [list(csv.DictReader(file.read_text().splitlines())) for file in files]

    return run


@pytest.mark.slow
@pytest.mark.long
def test_trainers_on_several_days(experiment, tmp_path):
    totals, cases = experiment("--trainers", TRAINERS[0])
    assert [row["label"] for row in totals] == ["Anterior", "Posterior", "mean"]
    assert {(row["iterations"], row["batch_size"], row["spacing_mm"]) for row in totals} == {("2", "3", "3x2x2")}
    assert len(cases) == 2 * int(totals[0]["cases"])

    again, more = experiment("--trainers", TRAINERS[1], "--untimed")
    assert again[:3] == totals  # the other day's rows stay
    assert more[: len(cases)] == cases
    assert [(row["trainer"], row["seconds_per_epoch"]) for row in again[3:]] == [(TRAINERS[1], "")] * 3

    models = tmp_path / "work" / "nnUNet_results" / "Dataset004_Hippocampus"
    fold = models / f"{TRAINERS[1]}__nnUNetSpacing3x2x2Batch3Plans__3d_fullres" / "fold_0"
    assert again[-1]["checkpoint_sha256"] == hashlib.sha256((fold / "checkpoint_final.pth").read_bytes()).hexdigest()
    mean = json.loads((fold / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"]
    assert float(again[-1]["dice"]) == pytest.approx(mean, abs=1e-4)
    assert experiment("--trainers", *TRAINERS, "--collect", "--untimed")[1] == more
    report = (tmp_path / "results" / "accuracy_tiny.md").read_text()
    assert re.search(rf"^\| {TRAINERS[1]} \| \w+ \| {100 * float(again[-1]['dice']):.2f} \|", report, re.M)
    assert "Seconds are left out" in report
