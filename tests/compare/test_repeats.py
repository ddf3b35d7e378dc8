"""Repeats and groups, from nnU-Net's folders to the report, and the page of such a report in a real browser."""

import json
import shutil

import pytest
from selenium.webdriver.common.by import By

from nnunet_ext.cli.main import main

NAMES = ["nnUNetTrainer", "SASANTrainer"]


@pytest.fixture(scope="module")
def repeated(made_results, tmp_path_factory):
    """nnU-Net's folders with two trainings of each method, and the report with repeats and groups."""
    root = tmp_path_factory.mktemp("repeated")
    copy = root / "folders"
    shutil.copytree(made_results.root, copy)
    results = copy / "nnUNet_results" / "Dataset004_Hippocampus"
    # The second training of each method predicts as another one does.
    for name, source in (("nnUNetTrainer", "EMNetTrainer"), ("SASANTrainer", "SASANTrainer")):
        target = results / f"{name}__nnUNetPlans_repeat2__3d_fullres"
        shutil.copytree(results / f"{source}__nnUNetPlans__3d_fullres", target)
    groups = root / "groups.csv"
    groups.write_text("case,patient\n" + "".join(f"{c},p{i // 4}\n" for i, c in enumerate(made_results.cases)))
    output = root / "report"
    options = ["--repeats", "2", "--groups", str(groups), "--tolerance", "2", "Anterior=1", "-np", "1"]
    options += ["--lesions", "Anterior"]
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(folder, str(copy / folder))
        assert main(["compare", "-d", "4", "-tr", *NAMES, *options, "-o", str(output)]) == 0
    return output


def test_repeats_are_averaged_and_groups_are_kept(repeated, report):
    content = json.loads((repeated / "summary.json").read_text())
    plain = json.loads((report / "summary.json").read_text())
    assert content["repeats"] == {"nnUNetTrainer": 2, "SASANTrainer": 2}
    assert len(set(content["groups"].values())) == 3
    means = {
        (m["entrant"], m["metric"]): m["mean"] for m in plain["means"] if m["mean_of_labels"] and m["metric"] == "dice"
    }
    expected = (means["nnUNetTrainer", "dice"] + means["EMNetTrainer", "dice"]) / 2
    found = next(c for c in content["comparisons"] if c["mean_of_labels"] and c["metric"] == "dice")
    assert found["baseline_mean"] == pytest.approx(expected)
    assert found["variance"]["counts"] == {"trainings": 2, "groups": 6, "cases": 12}
    assert found["new_trainings"] is True


def test_groups_across_folds_are_warned_of(repeated):
    """Cases of one patient lie in both folds."""
    content = json.loads((repeated / "summary.json").read_text())
    assert content["notes"][0].startswith("WARNING: cases of the same group were in training and in validation")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_in_a_browser(repeated, open_page, width, scheme):
    browser = open_page(repeated / "report.html", width, scheme)
    page = browser.find_element(By.TAG_NAME, "html")
    assert page.get_property("scrollWidth") == page.get_property("clientWidth") <= width
    titles = [title.text for title in browser.find_elements(By.CSS_SELECTOR, "main h3")]
    assert titles[:3] == ["All methods", "Intervals, and sizes that would decide", "Sources of uncertainty"]
    assert titles[4:6] == ["Detection of lesions", "Numbers of lesions"]
    assert "Caveats" in browser.find_element(By.CSS_SELECTOR, ".notes h2").text
    assert browser.get_log("browser") == []


def test_a_missing_repeat_is_named(results, tmp_path, capsys):
    assert main(["compare", "-d", "4", "-tr", *NAMES, "--repeats", "2", "-o", str(tmp_path)]) == 2
    assert "no trained model nnUNetTrainer__nnUNetPlans_repeat2__3d_fullres" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repeats-of", "SASANTrainer"], "--repeats-of 'SASANTrainer' must be NAME=FOLDER,FOLDER"),
        (["--repeats-of", "Other=a"], "--repeats-of Other=...: no such method; known: nnUNetTrainer, SASANTrainer"),
        (["--repeats-of", "SASANTrainer=nothing"], "no such folder: nothing, a repeat of SASANTrainer"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--groups", "^(x)"], "finds no group in"),
        (["--tolerance", "2", "Tail=3"], "--tolerance Tail=...: no such label; known: Anterior, Posterior"),
        (["--tolerance", "much"], "--tolerance 'much' must be a number or LABEL=NUMBER"),
        (["--tolerance", "1", "2"], "--tolerance has 2 numbers without a label"),
    ],
)
def test_mistakes_end_in_one_line(results, tmp_path, capsys, options, message):
    assert main(["compare", "-d", "4", "-tr", *NAMES, *options, "-o", str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_peoples_runs_are_taken_as_repeats(results, report, tmp_path):
    run = tmp_path / "elsewhere" / "SASANTrainer__nnUNetPlans__3d_fullres"
    shutil.copytree(results.model("SASANTrainer"), run)
    options = ["--repeats-of", f"SASANTrainer={run}", "--cache", str(report / "cache"), "-np", "1"]
    assert main(["compare", "-d", "4", "-tr", *NAMES, *options, "-o", str(tmp_path / "report")]) == 0
    content = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert content["repeats"] == {"nnUNetTrainer": 1, "SASANTrainer": 2}
