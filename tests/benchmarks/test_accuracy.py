"""`python -m benchmarks.accuracy` on shipped scans, with nnU-Net's own commands."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks.accuracy import Run, main, merge
from tests.helpers.workspaces import SHIPPED_CASES, lay_out

TRAINERS = ("StockTrainer", "FAFNetTrainer")


@pytest.fixture
def experiment(tmp_path):
    """Runs it on ten downsampled scans and returns the rows of its two files."""
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


def test_rows_of_another_setting_are_refused(tmp_path):
    """A table with both would compare them."""
    file, row = tmp_path / "rows.csv", {"trainer": "StockTrainer", "fold": 0, "iterations": 600, "dice": 0.5}
    merge(file, [row])
    merge(file, [row | {"trainer": "SASANTrainer"}])
    merge(file, [row | {"dice": 0.6}])
    assert [line.split(",")[::3] for line in file.read_text().splitlines()[1:]] == [
        ["StockTrainer", "0.6"],
        ["SASANTrainer", "0.5"],
    ]
    with pytest.raises(ValueError, match=r"rows of SASANTrainer with iterations 600 instead of 50: .* another --name"):
        merge(file, [row | {"iterations": 50}])


def test_where_a_training_began_is_kept(tmp_path):
    run = Run(tmp_path, "Dataset004_Hippocampus", "3d_fullres", "nnUNetPlans", 0, "SASANTrainer")
    assert run.where()["commit"] == "unknown"
    run.note_beginning("cpu")
    began = run.where()
    assert (began["device"], began["commit"] != "unknown") == ("cpu", True)
    run.began.write_text(json.dumps(began | {"commit": "earlier"}))
    run.folder.mkdir(parents=True)
    run.note_beginning("cpu")  # resumes where it stopped
    assert run.where()["commit"] == "earlier"


def test_what_is_no_dataset_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path / "Dataset004_Gone"), "--work", str(tmp_path / "work"), "--name", "x"])
    assert "is not an nnU-Net dataset: a folder DatasetNNN_NAME with a dataset.json" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
@pytest.mark.long
def test_trainers_on_several_days(experiment, tmp_path):
    totals, cases = experiment("--trainers", TRAINERS[0])
    assert [row["label"] for row in totals] == ["Anterior", "Posterior", "mean"]
    assert {(row["iterations"], row["batch_size"], row["spacing_mm"]) for row in totals} == {("2", "3", "3x2x2")}
    assert len(cases) == 2 * int(totals[0]["cases"])

    again, more = experiment("--trainers", TRAINERS[1], "--untimed")
    # The other day's rows stay; they have no verdict.
    assert [{key: row[key] for key in totals[0]} for row in again[:3]] == totals
    assert {row["verdict"] for row in again[:3]} == {""}
    assert again[-1]["verdict"] in ("better", "worse", "equivalent", "inconclusive")
    gained = float(again[-1]["dice"]) - float(totals[-1]["dice"])
    assert float(again[-1]["difference"]) == pytest.approx(gained, abs=2e-4)
    assert (again[-1]["repeat"], len(again[-1]["pseudo_dice_by_epoch"].split())) == ("1", 1)
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
