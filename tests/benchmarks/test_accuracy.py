"""`python -m benchmarks.accuracy` on shipped scans, with nnU-Net's own commands."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from benchmarks.accuracy import CONTROLS, Run, main
from benchmarks.accuracy_files import merge, numbers_of, verdicts
from benchmarks.measure import RESULTS
from benchmarks.page.result_files import Results
from nnunet_ext.nnunet.trainers import TRAINERS_VARIABLE, external_trainers
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


def test_further_trainings_are_added_as_repeats(tmp_path):
    """The hash of its checkpoint identifies a training, whichever machine it ran on."""
    file = tmp_path / "rows.csv"
    once = {"trainer": "StockTrainer", "fold": 0, "dice": 0.5, "checkpoint_sha256": "a"}
    merge(file, [once])  # older files do not number their trainings
    again, other = once | {"checkpoint_sha256": "b"}, once | {"trainer": "SASANTrainer", "checkpoint_sha256": "c"}
    assert numbers_of(file, [again, once, other, other | {"checkpoint_sha256": "d"}]) == [2, 1, 1, 2]
    merge(file, [again | {"repeat": 2}], add=True)
    merge(file, [other | {"repeat": 1}], add=True)
    merge(file, [again | {"repeat": 2, "dice": 0.6}], add=True)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["trainer"], row["repeat"], row["dice"]) for row in rows] == [
        ("StockTrainer", "", "0.5"),
        ("StockTrainer", "2", "0.6"),
        ("SASANTrainer", "1", "0.5"),
    ]
    merge(file, [once | {"repeat": 1, "dice": 0.7}])  # without `add`, a trainer is measured anew
    assert "0.7" in file.read_text()
    assert "0.6" not in file.read_text()


def of_cases(trainer, repeat, *dice):
    return [
        {
            "trainer": trainer,
            "fold": "0",
            "repeat": str(repeat),
            "case": f"case {i}",
            "label": label,
            "dice": str(value),
        }
        for i, value in enumerate(dice)
        for label in ("Anterior", "Posterior")
    ]


def test_verdicts_are_those_of_compare_on_all_trainings():
    """Trainers may have different numbers of trainings; a single one says nothing about further ones."""
    level = [0.5 + 0.01 * i for i in range(12)]

    def above(points):
        return [dice + points / 100 + 0.001 * (-1) ** i for i, dice in enumerate(level)]

    rows = of_cases("StockTrainer", 1, *level) + of_cases("StockTrainer", 2, *above(0.4))
    for repeat, points in enumerate((3.1, 2.8, 3.4), 1):
        rows += of_cases("SASANTrainer", repeat, *above(points))
    rows += of_cases("EMNetTrainer", 1, *above(3.1))
    found = verdicts(rows)
    assert list(found) == ["SASANTrainer", "EMNetTrainer"]
    assert found["SASANTrainer"]["verdict"] == "better"
    assert float(found["SASANTrainer"]["difference"]) == pytest.approx(0.029, abs=1e-9)
    assert [each["holds_for_new_trainings"] for each in found.values()] == ["yes", "no"]
    low, high = (float(found["SASANTrainer"][key]) for key in ("interval_low", "interval_high"))
    assert low < 0.029 < high
    assert high - low > 0.006  # the trainings' means differ by 0.4 and 0.6 points, the cases' differences hardly
    assert verdicts(of_cases("StockTrainer", 1, *level)) == {}


def test_a_label_that_is_absent_and_not_predicted_counts_as_found():
    """nnU-Net records no Dice there; compare's rule gives 1."""
    rows = of_cases("StockTrainer", 1, 0.5, 0.5, 0.5, 0.5) + of_cases("SASANTrainer", 1, 0.5, 0.5, 0.5, "nan")
    assert float(verdicts(rows)["SASANTrainer"]["difference"]) == pytest.approx(0.125)


def test_committed_verdicts_are_those_of_the_committed_cases():
    committed = Results(RESULTS)
    names = [name for name in committed.names if name.startswith("accuracy_") and f"{name}_cases" in committed.names]
    assert "accuracy_hippocampus" in names
    for name in names:
        found = verdicts(committed.rows(f"{name}_cases"))
        means = {row["trainer"]: row for row in committed.rows(name) if row["label"] == "mean"}
        assert {trainer: {key: means[trainer][key] for key in columns} for trainer, columns in found.items()} == found


def test_the_control_has_nnunets_network_and_lstmsas_recipe(make_trainer, monkeypatch):
    monkeypatch.setenv(TRAINERS_VARIABLE, external_trainers({TRAINERS_VARIABLE: str(CONTROLS)}))
    stock, control, lstmsa = (
        make_trainer(name, "2d_tiny") for name in ("StockTrainer", "StockAdamTrainer", "LSTMSATrainer")
    )
    assert str(control.network) == str(stock.network)
    assert type(control.optimizer) is type(lstmsa.optimizer) is torch.optim.Adam
    recipes = [
        {key: each.optimizer.param_groups[0][key] for key in ("lr", "weight_decay")} for each in (control, lstmsa)
    ]
    assert recipes[0] == recipes[1] == {"lr": 3e-4, "weight_decay": 1e-4}
    assert (control.loss.loss.weight_dice, control.loss.loss.weight_ce) == (0.5, 0.5)


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
