"""The files of a report: what they say, and the page in a real browser."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import stats

from nnunet_ext.cli.main import main
from nnunet_ext.compare.collect import collect_cross_validation
from nnunet_ext.compare.heldout import collect_predictions
from nnunet_ext.compare.report.overlays import chosen_slice
from nnunet_ext.compare.report.text import count_text, notes
from nnunet_ext.compare.run import compare
from nnunet_ext.compare.settings import Settings
from nnunet_ext.nnunet.training_log import read_training

ROOT = Path(__file__).parents[2]
NAMES = ["nnUNetTrainer", "SASANTrainer", "EMNetTrainer"]


@pytest.fixture(scope="session")
def content(report):
    return json.loads((report / "summary.json").read_text())


def test_the_summary_says_what_is_true(content):
    """SASANTrainer was made better and EMNetTrainer equally good, which twelve cases with this spread cannot show."""
    assert content["verdicts"] == {"SASANTrainer": "better", "EMNetTrainer": "inconclusive"}
    assert content["headline"] == "SASANTrainer is better than nnUNetTrainer; EMNetTrainer is inconclusive."
    assert next(iter(content["ranks"])) == "SASANTrainer"
    assert (content["cases"], content["folds"], content["baseline"]) == (12, ["0", "1"], "nnUNetTrainer")


def test_the_numbers_are_those_of_the_cases(report, content):
    """The difference and its signed-rank test, recomputed from cases.csv."""
    cases = pd.read_csv(report / "cases.csv")
    assert len(cases) == 3 * 12 * 2
    means = cases.groupby(["entrant", "case"])["dice"].mean().unstack("entrant")
    difference = means["SASANTrainer"] - means["nnUNetTrainer"]
    found = next(
        c for c in content["comparisons"] if (c["entrant"], c["metric"], c["label"]) == ("SASANTrainer", "dice", "mean")
    )
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["p_signed_rank"] == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert found["p"] == max(found["p_signed_rank"], found["p_model"])
    assert found["interval_low"] < found["difference"] < found["interval_high"]
    assert found["pairs"] == 12


def test_costs_are_measured(content):
    """Parameters as of the built networks; times and memory as in the logs; seconds between scans."""
    costs = content["costs"]
    assert costs["nnUNetTrainer"]["parameters"] == 29841
    assert costs["SASANTrainer"]["parameters"] == 96931
    assert costs["SASANTrainer"]["multiply_adds"] > costs["nnUNetTrainer"]["multiply_adds"] > 1e7
    assert [costs[name]["epoch_seconds"] for name in NAMES] == [2, 3, 4]
    assert costs["EMNetTrainer"]["memory_gb"] == 1.2
    assert costs["EMNetTrainer"]["scan_seconds"] == 1
    assert costs["EMNetTrainer"]["epochs"] == 3


def test_markdown_and_latex(report):
    text = (report / "report.md").read_text()
    assert "**SASANTrainer is better than nnUNetTrainer; EMNetTrainer is inconclusive.**" in text
    assert re.search(r"^\| SASANTrainer \| better \| \d\d\.\d\d \| \d\d\.\d\d \| \+\d", text, re.M)
    (latex,) = re.findall(r"```latex\n(.*?)```", text, re.S)
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {row.count("&") for row in rows} == {10}
    assert r"95\% interval" in latex


def test_keys_and_columns_are_documented(report, content):
    """Everything in summary.json and cases.csv has a place in docs/compare.md."""
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "compare.md").read_text()))
    parts = ("comparisons", "means", "emptiness")
    keys = set(content) | {key for part in parts for row in content[part] for key in row}
    keys |= {key for part in ("ranks", "costs") for row in content[part].values() for key in row}
    with (report / "cases.csv").open() as file:
        columns = set(csv.DictReader(file).fieldnames or ())
    assert keys | columns <= named


def test_a_page_without_network(report):
    """The only addresses are the namespaces of SVG."""
    page = (report / "report.html").read_text()
    assert set(re.findall(r"""https?://[^"' <)]+""", page)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = Counter(re.findall(r'\sid="([^"]+)"', page))
    assert [name for name, count in ids.items() if count > 1] == []
    for name in re.findall(r'(?:aria-labelledby|for|aria-controls)="([^"]+)"', page):
        assert set(name.split()) <= set(ids), name


def test_names_are_escaped(results, tmp_path):
    """A name from the command line cannot become markup."""
    compare_folders(results, tmp_path, "<b>x</b>&", results.dataset)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<b>x" not in page
    assert "&lt;b&gt;x&lt;/b&gt;&amp;" in page
    assert "(no image found)" in page  # no --images
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["costs"] == {}


def test_a_label_that_no_case_has(results, tmp_path):
    """It scores 1 in every mean, and a caveat says so; with the other rule it is left out everywhere."""
    dataset = results.dataset | {"labels": results.dataset["labels"] | {"Tail": 3}}
    scored = compare_folders(results, tmp_path, "other", dataset)
    found = scored.analysis.comparisons["other", "dice", "Tail"]
    assert (found.estimate.cases, found.own, found.baseline) == (6, 1, 1)
    assert any(note.startswith("No case has the label Tail") for note in notes(scored))
    outcome = compare_folders(results, tmp_path, "other", dataset, empty_labels="rate")
    without = compare_folders(results, tmp_path, "other", results.dataset, empty_labels="rate")
    found = outcome.analysis.comparisons["other", "dice", "Tail"]
    assert (found.estimate.cases, found.dropped, found.verdict) == (0, 6, "inconclusive")
    assert repr(outcome.analysis.primary("other")) == repr(without.analysis.primary("other"))
    assert outcome.analysis.emptiness["other", "Tail"].absent == 6
    assert "NaN" not in (tmp_path / "report" / "summary.json").read_text()


def compare_folders(results, folder, name, dataset, **settings):
    """Two trainers' first folds as folders of predictions."""
    folders = [results.model(trainer) / "fold_0" / "validation" for trainer in NAMES[:2]]
    for predictions in folders:
        (predictions / "dataset.json").write_text(json.dumps(dataset))
    truths = folder / "labels"
    truths.mkdir(exist_ok=True)
    for case in results.splits[0]["val"]:
        (truths / f"{case}.nii.gz").write_bytes(results.truth(case).read_bytes())
    study = collect_predictions([f"a={folders[0]}", f"{name}={folders[1]}"], truths)
    return compare(study, Settings(**settings), folder / "report", 1)


def test_the_slice_shows_most_foreground_across_the_thickest_voxels():
    truth, prediction = np.zeros((4, 5, 6), dtype=int), np.zeros((4, 5, 6), dtype=int)
    truth[:, 2, :3] = 1
    prediction[1, 3, :] = 1
    assert chosen_slice(truth, prediction, (1, 3, 1)) == (1, 2)
    assert chosen_slice(truth, prediction, (1, 1, 1)) == (0, 1)
    assert chosen_slice(truth * 0, truth * 0, (1, 1, 1)) == (0, 2)


def compare_two(report, output):
    """The command on two trainers; scores of unchanged files are those of the report."""
    options = ["-np", "1", "-o", str(output), "--cache", str(report / "cache")]
    assert main(["compare", "-d", "4", "-tr", *NAMES[:2], *options]) == 0
    return json.loads((output / "summary.json").read_text())


def test_missing_labels_are_counted_and_told(results, report, tmp_path):
    """A case in which SASANTrainer missed one label entirely: Dice 0, the worst HD95, and a caveat."""
    case = results.splits[0]["val"][0]
    file = results.model("SASANTrainer") / "fold_0" / "validation" / f"{case}.nii.gz"
    image = sitk.ReadImage(str(file))
    sitk.WriteImage(image * sitk.Cast(image != 2, image.GetPixelID()), str(file))
    results.evaluate("SASANTrainer", 0)
    content = compare_two(report, tmp_path)
    assert {"entrant": "SASANTrainer", "label": "Posterior", "missed": 1, "invented": 0, "absent": 0} in content[
        "emptiness"
    ]
    assert any("SASANTrainer missed 1 entirely and has 0 false positives" in note for note in content["notes"])
    pairs = {(c["metric"], c["label"]): (c["pairs"], c["dropped"]) for c in content["comparisons"]}
    assert pairs["hd95", "Posterior"] == (12, 0)
    assert pairs["dice", "Posterior"] == (12, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to compare: give -d and -tr, or --predictions and --labels"),
        (["-d", "4", "-tr", "A", "--predictions", "a=b"], "--predictions stands instead of -d and -tr"),
        (["--predictions", "a=b"], "--predictions needs --labels"),
        (["-d", "4", "-tr", "A", "B", "--labels", "x"], "--labels and --images belong to --predictions"),
        (["-d", "77", "-tr", *NAMES], "Could not find a dataset with the ID 77"),
        (["-d", "four", "-tr", *NAMES], "-d four must be a number"),
        (["-d", "4", "-tr", *NAMES, "--margin", "0"], "`margin`=0 must be above 0"),
        (["-d", "4", "-tr", *NAMES, "--tolerance", "-1"], "`tolerance`=-1 must be above 0"),
        (["-d", "4", "-tr", *NAMES, "-np", "0"], "-np 0 must be at least 1"),
        (["-d", "4", "-tr", "nnUNetTrainer", "UNet"], "no trained model UNet__nnUNetPlans__3d_fullres"),
    ],
)
def test_mistakes_end_in_one_line(results, tmp_path, capsys, options, message):
    assert main(["compare", *options, "-o", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_unequal_trainings_are_told(results, report, tmp_path):
    for log in results.model("SASANTrainer").glob("fold_*/training_log_*.txt"):
        log.write_text(log.read_text().replace("3 epochs, 20 training", "3 epochs, 40 training"))
    notes = compare_two(report, tmp_path)["notes"]
    assert any("SASANTrainer 3 epochs of 40 iterations" in note for note in notes)


def test_a_network_that_cannot_be_built_leaves_the_report(results, report, tmp_path):
    (results.model("SASANTrainer") / "plans.json").unlink()
    content = compare_two(report, tmp_path)
    assert content["costs"]["SASANTrainer"]["parameters"] is None
    assert any(note.startswith("SASANTrainer: not counted, FileNotFoundError") for note in content["notes"])


def test_logs_of_a_resumed_training(tmp_path):
    """For an epoch in both files, the later file counts, by date and not by name."""
    lines = "2026-01-01 10:00:00.000000: Epoch {}\n2026-01-01 10:00:01.000000: train_loss {}\n"
    (tmp_path / "training_log_2026_9_30_10_00_00.txt").write_text(lines.format(0, 1) + lines.format(1, 2))
    (tmp_path / "training_log_2026_10_1_10_00_00.txt").write_text(lines.format(1, 5) + lines.format(2, "nan"))
    log = read_training(tmp_path)
    epochs, losses = log.curve("train_loss")
    assert epochs == [1, 2, 3]
    assert losses[:2] == [1, 5]
    assert np.isnan(losses[2])
    assert log.scan_seconds == []


def test_logs_of_a_training_that_was_given_up(tmp_path):
    """A new, shorter training replaces the earlier one, of which nothing is shown."""
    lines = "2026-01-01 10:00:00.000000: Epoch {}\n2026-01-01 10:00:01.000000: train_loss {}\n"
    first = "".join(lines.format(epoch, 9) for epoch in range(5))
    (tmp_path / "training_log_2026_1_1_10_00_00.txt").write_text(first)
    (tmp_path / "training_log_2026_1_2_10_00_00.txt").write_text(lines.format(0, 1) + lines.format(1, 2))
    assert read_training(tmp_path).curve("train_loss") == ([1, 2], [1, 2])


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (39.4e6, "39.4 M"), (4.63e11, "463 G"), (float("nan"), "\N{EN DASH}")]
)
def test_large_numbers(value, text):
    assert count_text(value) == text


def test_the_same_study_gives_the_same_report(report, made_results, tmp_path, monkeypatch):
    """Bootstrap, figures and pictures are reproducible: the page is the same to the byte."""
    for name, value in made_results.environment.items():
        monkeypatch.setenv(name, value)
    study = collect_cross_validation("4", "3d_fullres", NAMES)
    compare(study, Settings(), tmp_path, 1, cache=report / "cache")
    for name in ("report.html", "report.md", "summary.json", "cases.csv"):
        assert (tmp_path / name).read_text() == (report / name).read_text(), name


def test_seconds_can_be_left_out(report, made_results, tmp_path, monkeypatch):
    for name, value in made_results.environment.items():
        monkeypatch.setenv(name, value)
    options = ["-d", "4", "-tr", *NAMES, "--cache", str(report / "cache"), "-np", "1", "-o", str(tmp_path), "--untimed"]
    assert main(["compare", *options]) == 0
    costs = json.loads((tmp_path / "summary.json").read_text())["costs"]
    assert {costs[name][key] for name in NAMES for key in ("epoch_seconds", "scan_seconds")} == {None}
    text = (tmp_path / "report.md").read_text()
    assert "Seconds are left out" in text
    assert "time per epoch" not in text
    assert "times the parameters" in text
    assert "Seconds are left out" not in (report / "report.md").read_text()


def test_the_readmes_command(made_results, tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^nnunet_ext (compare .*)$", readme, re.M)
    for name, value in made_results.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        *("cache", "cases.csv", "figures", "report.html", "report.md", "summary.json")
    ]
